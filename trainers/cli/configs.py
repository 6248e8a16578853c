"""The config files that come along, for the command line of a fork.

advprompt configs                     # their folder
advprompt configs AdvPT/vit_b16       # the path of one, e.g. for --config-file $(...)
advprompt configs --list
advprompt configs --reference         # every key with its default, its range and its meaning
advprompt configs --copy configs/advprompt
"""

import argparse
import shutil
from pathlib import Path

from ..config import keys, shipped
from ..utils import errors

REFERENCE = """# Every configuration key

Made by `python -m advprompt configs --reference > docs/reference/keys.md` from the
declarations in the code. A key is set in a yaml file, or as `KEY VALUE` at the end of a command
line. All keys are checked before anything is loaded or written; an answer names every mistake.
"""
KINDS = ("trainers", "datasets", "attacks")


def names(kind: str) -> list[str]:
    """Return the names of one kind, sorted."""
    folder = shipped.configs_folder() / kind
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def reference() -> str:
    """Return the page of all keys, in Markdown, from their declarations."""
    keys.defaults()  # declares those of all rooms and methods
    groups: dict[str, list[str]] = {}
    others = []
    for name, key in sorted(keys.KEYS.items()):
        if not key.about:
            others.append(f"`{name}`")
            continue
        parts = name.split(".")[: 2 if name.startswith("TRAINER.") else 1]
        group = ".".join(parts) if name.count(".") >= len(parts) else ""
        cells = f"`{name}`", f"`{key.default!r}`", key.expected(), key.about
        groups.setdefault(group, []).append(" | ".join(c.replace("|", r"\|") for c in cells))
    lines = [REFERENCE]
    for group, rows in groups.items():
        lines += [f"## {group or 'The run'}", "", "| key | default | expected | meaning |"]
        lines += ["|---|---|---|---|", *(f"| {row} |" for row in rows), ""]
    return "\n".join([*lines, f"Known to Dassl, and not used here: {', '.join(others)}."])


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
            raise errors.UserError(f"'{target}' is there already; name a new folder")
        try:
            shutil.copytree(shipped.configs_folder(), target, ignore=lambda *_: ["__pycache__"])
        except (OSError, shutil.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise errors.UserError(f"cannot copy to '{target}' ({why}); name another") from error
        print(target)
    elif args.reference:
        print(reference())
    elif args.list:
        for kind in KINDS:
            print(f"{kind}:", *names(kind), sep="\n  ")
    else:
        print(shipped.configs_folder())
