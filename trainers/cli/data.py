"""Data sets: what there is, what is missing on the disk, and fetching it.

    python -m advprompt data list
    python -m advprompt data check pets eurosat --root $DATA
    python -m advprompt data fetch all --root $DATA --jobs 3

Names are those of the scripts (``pets``) or of the configs (``oxford_pets``), or ``all``. Exit
code: 0 all that was named is complete, 1 something is missing, 2 the command was wrong.
"""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from ..data.fetching import fetch_all, jobs_of
from ..data.inventory import BUILT_IN, UNFETCHED, Inventory, look_at
from ..datasets import COOP
from ..datasets.sources import find_source, read_sources
from ..utils import errors


def full_names(names: Iterable[str]) -> list[str]:
    """Turn short names and ``all`` into names of configs, each once; UserError for unknown ones."""
    known = {name: [name] for name in (*COOP, *UNFETCHED)} | {"all": list(COOP)}
    known |= {source.short: [source.config] for source in read_sources().values()}
    full = []
    for name in names:
        if name not in known:
            raise errors.UserError(f"unknown data set '{name}'.{errors.nearest(name, known)}")
        full += known[name]
    return list(dict.fromkeys(full))


def list_row(name: str) -> list[str]:
    if name in UNFETCHED:
        need = "no need" if UNFETCHED[name] == BUILT_IN else "no"
        return [name, name, name, "", "", need, "", re.split("[:,]", UNFETCHED[name])[0]]
    cls, source = COOP[name], find_source(COOP[name])
    sizes = " / ".join(f"{size:,}" for size in source.sizes)
    row = [name, source.short, cls.dataset_dir, f"{cls.n_classes:,}", sizes]
    if all(piece.addresses for piece in source.pieces):
        size = sum(piece.addresses[0].size or 0 for piece in source.pieces)
        return [*row, "yes", tqdm.format_sizeof(size, "B") if size else "?", source.terms]
    return [*row, "split file only" if cls.split_file else "class names only", "", source.terms]


def conclude(inventories: list[Inventory], advice: list[str]) -> int:
    """Print what belongs where, what to do about what is missing, and which sets are complete."""
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
    """Run one of the three commands and return the exit code."""
    parser = argparse.ArgumentParser("advprompt data", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("command", choices=("list", "check", "fetch"))
    add("names", nargs="*", metavar="NAME", help="data sets, or all")
    root = "CoOp's data folder (default: DATA of the environment, else data)"
    add("--root", default=os.environ.get("DATA") or "data", help=root)
    add("--jobs", type=int, default=3, metavar="N", help="files at once (default 3)")
    args = parser.parse_args(argv)
    names = full_names(args.names)
    if args.command == "list":
        headers = ["data set", "short name", "folder", "classes", "train / val / test"]
        headers += ["can be fetched", "download", "terms of use"]
        rows = [list_row(name) for name in names or [*COOP, *UNFETCHED]]
        print(tabulate(rows, headers, maxcolwidths=[None] * 7 + [24], disable_numparse=True))
        return 0
    if not names:
        raise errors.UserError(f"{args.command} what? name data sets, such as pets, or all")
    if args.jobs < 1:
        raise errors.UserError(f"--jobs is {args.jobs}, expected 1 or more")
    root = Path(args.root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise errors.UserError(f"--root '{root}' is not a folder; name that of the data sets")
    found = [look_at(name, root) for name in names]
    jobs, advice = jobs_of(found, root)
    if args.command == "fetch" and jobs:
        failed = fetch_all(jobs, root, args.jobs)
        found = [look_at(name, root) for name in names]
        advice = failed + jobs_of(found, root)[1]
    elif jobs:
        fetchable = " ".join(dict.fromkeys(job.name for job in jobs))
        advice.append(f"to fetch what has an address: python -m advprompt data fetch {fetchable}")
    return conclude(found, advice)
