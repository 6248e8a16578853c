"""Data sets: which there are, what is missing on the disk, and where to get it.

    python -m advprompt data list
    python -m advprompt data check pets eurosat --root $DATA

Names are those of the scripts (``pets``) or of the configs (``oxford_pets``), or ``all``. Exit
code: 0 everything named is complete, 1 something is missing, 2 the command was wrong.
"""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from ..data.inventory import WITHOUT_SOURCE, Inventory, look_at
from ..datasets import COOP
from ..datasets.sources import find_source, read_sources
from ..utils import errors


def full_names(names: Iterable[str]) -> list[str]:
    """Turn short names and ``all`` into names of configs, each once; UserError for unknown ones."""
    known = {name: [name] for name in (*COOP, *WITHOUT_SOURCE)} | {"all": list(COOP)}
    known |= {source.short: [source.config] for source in read_sources().values()}
    full = []
    for name in names:
        if name not in known:
            raise errors.UserError(f"unknown data set '{name}'.{errors.nearest(name, known)}")
        full += known[name]
    return list(dict.fromkeys(full))


def list_row(name: str) -> list[str]:
    if name in WITHOUT_SOURCE:
        return [name, name, name, "", "", "", re.split("[:,]", WITHOUT_SOURCE[name])[0]]
    cls, source = COOP[name], find_source(COOP[name])
    sizes = " / ".join(f"{size:,}" for size in source.sizes)
    row = [name, source.short, cls.dataset_dir, f"{cls.n_classes:,}", sizes]
    size = sum(piece.addresses[0].size or 0 for piece in source.pieces if piece.addresses)
    return [*row, tqdm.format_sizeof(size, "B") if size else "", source.terms]


def advice_on(inventories: list[Inventory]) -> list[str]:
    """Return what to get where for everything that is missing, a sentence for each."""
    advice = {}
    for found in inventories:
        for finding in found.findings:
            piece = finding.piece
            if not finding.missing or piece is None:
                continue
            places = " and ".join(f"'{found.folder / name}'" for name in piece.makes)
            if os.path.lexists(finding.path):
                advice[finding.path] = f"'{finding.path}' is not complete: {finding.state}"
            elif piece.addresses:
                pages = ", or ".join(
                    address.page + (f" (SHA-256 {address.checksum})" if address.checksum else "")
                    for address in piece.addresses
                )
                advice[piece] = f"to have {places}: get {pages}"
            else:
                advice[piece] = f"to have {places}: {piece.by_hand}"
    return list(advice.values())


def conclude(inventories: list[Inventory], advice: list[str]) -> int:
    """Print which files belong where, how to get missing ones, and which sets are complete."""
    rows = [
        ["" if n else found.name, finding.path, finding.state]
        for found in inventories
        for n, finding in enumerate(found.findings)
    ]
    print(tabulate(rows, ["data set", "belongs here", "state"], disable_numparse=True))
    for sentence in dict.fromkeys(advice):
        print(f"\n{sentence}")
    complete, incomplete = (
        ", ".join(found.name for found in inventories if found.complete is wanted)
        for wanted in (True, False)
    )
    print(f"\ncomplete: {complete or 'none'}")
    if incomplete:
        print(f"incomplete: {incomplete}")
    return 1 if incomplete else 0


def main(argv: list[str]) -> int:
    """Run one of the two commands and return the exit code."""
    parser = argparse.ArgumentParser("advprompt data", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("command", choices=("list", "check"))
    add("names", nargs="*", metavar="NAME", help="data sets, or all")
    root = "CoOp's data folder (default: DATA of the environment, else data)"
    add("--root", default=os.environ.get("DATA") or "data", help=root)
    args = parser.parse_args(argv)
    names = full_names(args.names)
    if args.command == "list":
        headers = ["data set", "short name", "folder", "classes", "train / val / test"]
        rows = [list_row(name) for name in names or [*COOP, *WITHOUT_SOURCE]]
        widths = [None] * 6 + [24]
        headers += ["download", "terms of use"]
        print(tabulate(rows, headers, maxcolwidths=widths, disable_numparse=True))
        return 0
    if not names:
        raise errors.UserError("check what? name data sets, such as pets, or all")
    root = Path(args.root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise errors.UserError(f"--root '{root}' is not a folder; name that of the data sets")
    found = [look_at(name, root) for name in names]
    return conclude(found, advice_on(found))
