"""Data sets: what there is, what is missing on the disk, and fetching it.

    python -m advprompt data list
    python -m advprompt data check pets eurosat --root $DATA
    python -m advprompt data fetch all --root $DATA --jobs 3

Names are those of the scripts (``pets``) or of the configs (``oxford_pets``), or ``all``. Exit
code: 0 all that was named is complete, 1 something is missing, 2 the command was wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from ..data.fetching import fetch_all, jobs_of
from ..data.inventory import BUILT_IN, UNFETCHED, Inventory, look_at
from ..datasets import sources
from ..utils import errors
from ..utils.entry import run_tool


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="data", description=__doc__.partition("\n")[0])
    p.add_argument("command", choices=("list", "check", "fetch"))
    p.add_argument("names", nargs="*", metavar="NAME", help="data sets, or all")
    p.add_argument(
        "--root",
        default=os.environ.get("DATA") or "data",
        help="CoOp's data folder (default: DATA of the environment, else data)",
    )
    p.add_argument("--jobs", type=int, default=3, metavar="N", help="files at once (default 3)")
    return p


def full_names(names: Iterable[str]) -> list[str]:
    """Turn short names and ``all`` into the names of configs, each once.

    Raises:
        UserError: a name is unknown.
    """
    full = []
    for name in names:
        known = sources.SHORT_NAMES.get(name, name)
        if name == "all":
            full += sources.SOURCES
        elif known in sources.SOURCES or known in UNFETCHED:
            full.append(known)
        else:
            choices = {*sources.SOURCES, *sources.SHORT_NAMES, *UNFETCHED, "all"}
            raise errors.UserError(f"unknown data set '{name}'.{errors.nearest(name, choices)}")
    return list(dict.fromkeys(full))


def in_bytes(size: int | None) -> str:
    """Return ``792 MB`` and the like; ``?`` for None."""
    if size is None:
        return "?"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def list_row(name: str) -> list[str]:
    """Return the row of one data set."""
    short = next((s for s, full in sources.SHORT_NAMES.items() if full == name), name)
    if name in UNFETCHED:
        need = "no need" if UNFETCHED[name] == BUILT_IN else "no"
        return [name, short, name, "", "", need, "", "", re.split("[:,]", UNFETCHED[name])[0]]
    source = sources.SOURCES[name]
    fetched = all(piece.addresses for piece in source.pieces)
    only = "split file only" if source.split else "class names only"
    sizes = [p.addresses[0].size for p in source.pieces if p.addresses and p.addresses[0].size]
    tried = {a.tried or "never" for p in source.all_pieces for a in p.addresses}
    return [
        name,
        short,
        source.data_class.dataset_dir,
        f"{source.classes:,}",
        " / ".join(f"{size:,}" for size in source.sizes),
        "yes" if fetched else only,
        in_bytes(sum(sizes) if sizes else None) if fetched else "",
        ", ".join(sorted(tried)),
        source.terms,
    ]


def list_table(names: list[str]) -> str:
    """Return the table of ``list``."""
    headers = [
        "data set",
        "short name",
        "folder",
        "classes",
        "train / val / test",
        "can be fetched",
    ]
    headers += ["download", "addresses tried", "terms of use"]
    rows = [list_row(name) for name in names]
    return tabulate(rows, headers, maxcolwidths=[None] * 8 + [24], disable_numparse=True)


def check_table(inventories: list[Inventory]) -> str:
    """Return the table of ``check``: what belongs where, and whether it is there."""
    rows = [
        [inventory.name if not n else "", str(finding.path), finding.state]
        for inventory in inventories
        for n, finding in enumerate(inventory.findings)
    ]
    return tabulate(rows, ["data set", "belongs here", "state"], disable_numparse=True)


def conclude(inventories: list[Inventory], advice: list[str]) -> int:
    """Print the table, what a person must do, and which sets are complete; return the exit code."""
    print(check_table(inventories))
    for sentence in dict.fromkeys(advice):
        print(f"\n{sentence}")
    complete = [inventory.name for inventory in inventories if inventory.complete]
    incomplete = [inventory.name for inventory in inventories if not inventory.complete]
    print(f"\ncomplete: {', '.join(complete) or 'none'}")
    if incomplete:
        print(f"incomplete: {', '.join(incomplete)}")
    return 1 if incomplete else 0


def main(argv: list[str] | None = None) -> int:
    """Run one of the three commands and return the exit code."""
    args = parser().parse_args(argv)
    names = full_names(args.names)
    if args.command == "list":
        print(list_table(names or [*sources.SOURCES, *UNFETCHED]))
        return 0
    if not names:
        raise errors.UserError(f"{args.command} what? name data sets, such as pets, or all")
    if args.jobs < 1:
        raise errors.UserError(f"--jobs is {args.jobs}, expected 1 or more")
    root = Path(args.root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise errors.UserError(f"--root '{root}' is no folder; name the folder of the data sets")
    found = [look_at(name, root) for name in names]
    jobs, advice = [], []
    for inventory in found:
        more, sentences = jobs_of(inventory, root)
        jobs, advice = jobs + more, advice + sentences
    if args.command == "fetch" and jobs:
        failed = fetch_all(jobs, root, args.jobs)
        found = [look_at(name, root) for name in names]
        advice = failed + [sentence for i in found for sentence in jobs_of(i, root)[1]]
    elif jobs:
        fetchable = " ".join(dict.fromkeys(job.name for job in jobs))
        advice.append(f"to fetch what has an address: python -m advprompt data fetch {fetchable}")
    return conclude(found, advice)


if __name__ == "__main__":
    sys.exit(run_tool(main))
