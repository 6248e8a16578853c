"""The shipped config files, for the command line of a fork.

advprompt configs                     # their folder
advprompt configs AdvPT/vit_b16       # the path of one, e.g. for --config-file $(...)
advprompt configs --list
advprompt configs --reference         # every key with default, range and meaning
advprompt configs --copy configs/advprompt
"""

import argparse
import inspect
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..config import keys, shipped
from ..utils import errors

KINDS = ("trainers", "datasets", "attacks")


def names(kind: str) -> list[str]:
    """Return the names of one kind, sorted."""
    folder = shipped.configs_folder() / kind
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def table(heads: str, rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [" | ".join(" ".join(c.split()).replace("|", r"\|") for c in row) for row in rows]
    rule = "|---" * len(heads.split(" | ")) + "|"
    return [f"| {heads} |", rule, *(f"| {row} |" for row in cells), ""]


def reference() -> list[str]:
    """# Configuration keys

    A key is set in a yaml file, or as `KEY VALUE` at the end of a command line. All keys are
    checked before anything is loaded or written, and one message names every mistake.
    """
    keys.defaults()  # declares those of all rooms and methods
    groups: dict[str, list] = {}
    for name, key in sorted(keys.KEYS.items()):
        parts = name.split(".")[: 2 if name.startswith("TRAINER.") else 1]
        group = ".".join(parts) if name.count(".") >= len(parts) else "The run"
        if key.about:
            row = f"`{name}`", f"`{key.default!r}`", key.expected(), key.about
            groups.setdefault(group, []).append(row)
    lines = []
    for group, rows in groups.items():
        lines += [f"## {group}", "", *table("key | default | expected | meaning", rows)]
    others = [f"`{name}`" for name, key in sorted(keys.KEYS.items()) if not key.about]
    return [*lines, f"Known to Dassl, and not used here: {', '.join(others)}."]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt configs", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("name", nargs="?", help="such as AdvPT/vit_b16, oxford_pets or linf1")
    add("--list", action="store_true", help="the names of all")
    add("--reference", action="store_true", help="every key, as docs/reference/keys.md")
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
        print("\n".join([inspect.getdoc(reference), "", *reference()]))
    elif args.list:
        for kind in KINDS:
            print(f"{kind}:", *names(kind), sep="\n  ")
    else:
        print(shipped.configs_folder())
