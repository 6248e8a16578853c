"""The shipped config files, for the command line of a fork.

advprompt configs                     # their folder
advprompt configs AdvPT/vit_b16       # the path of one, e.g. for --config-file $(...)
advprompt configs --list
advprompt configs --reference keys    # every key with default, range and meaning
advprompt configs --copy configs/advprompt
"""

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ..config import shipped
from ..utils import errors
from . import reference

KINDS = ("trainers", "datasets", "attacks")


def names(kind: str) -> list[str]:
    """Return the names of one kind, sorted."""
    folder = shipped.configs_folder() / kind
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def main(commands: Mapping[str, str], command: Callable, argv: list[str]) -> None:
    """Run the command; ``commands`` are all of them, ``command(name)`` returns one's main."""
    parser = argparse.ArgumentParser("advprompt configs", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("name", nargs="?", help="such as AdvPT/vit_b16, oxford_pets or linf1")
    add("--list", action="store_true", help="the names of all")
    about = "a page of docs/reference (default: keys)"
    add("--reference", nargs="?", const="keys", choices=reference.PAGES, help=about)
    add("--copy", metavar="FOLDER", help="copy them all to a new folder")
    args = parser.parse_args(argv)
    if args.name:
        found = [kind for kind in KINDS if args.name in names(kind)]
        if not found:
            known = [name for kind in KINDS for name in names(kind)]
            hint = errors.nearest(args.name, known)
            raise errors.UserError(f"no config file is called '{args.name}'.{hint}")
        print(shipped.config_file(found[0], args.name))
    elif args.copy:
        target = Path(args.copy)
        if target.exists():
            raise errors.UserError(f"'{target}' already exists; name a new folder")
        try:
            shutil.copytree(shipped.configs_folder(), target, ignore=lambda *_: ["__pycache__"])
        except (OSError, shutil.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise errors.UserError(f"cannot copy to '{target}' ({why}); name another") from error
        print(target)
    elif args.reference:
        print(reference.page_of(args.reference, commands, command))
    elif args.list:
        for kind in KINDS:
            print(f"{kind}:", *names(kind), sep="\n  ")
    else:
        print(shipped.configs_folder())
