"""The config files that come along, for the command line of a fork.

advprompt configs                     # their folder
advprompt configs AdvPT/vit_b16       # the path of one, e.g. for --config-file $(...)
advprompt configs --list
advprompt configs --copy configs/advprompt
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from ..config import shipped
from ..utils import errors
from ..utils.entry import run_tool

KINDS = ("trainers", "datasets", "attacks")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="advprompt configs", description=__doc__.split("\n")[0])
    p.add_argument("name", nargs="?", help="such as AdvPT/vit_b16, oxford_pets or linf1")
    p.add_argument("--list", action="store_true", help="the names of all")
    p.add_argument("--copy", metavar="FOLDER", help="copy them all to a new folder")
    return p


def names(kind: str) -> list[str]:
    """Return the names of one kind, sorted."""
    folder = shipped.configs_folder() / kind
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
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
            raise errors.UserError(f"'{target}' is there already; name a new folder")
        try:
            shutil.copytree(shipped.configs_folder(), target, ignore=lambda *_: ["__pycache__"])
        except (OSError, shutil.Error) as error:
            raise errors.UserError(f"cannot copy to '{target}' ({error})") from error
        print(target)
    elif args.list:
        for kind in KINDS:
            print(f"{kind}:", *names(kind), sep="\n  ")
    else:
        print(shipped.configs_folder())
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
