"""Data sets: what is missing on the disk, and where to get it.

    python -m advprompt data check pets eurosat --root $DATA

Names are those of the scripts (``pets``) or of the configs (``oxford_pets``), or ``all``. Exit
code: 0 everything named is complete, 1 something is missing, 2 the command was wrong.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from ..data.inventory import Finding, look_at
from ..datasets import COOP, DRAWN, OWN
from ..datasets.sources import Address, find_source, read_sources
from ..utils import errors


def full_names(names: Iterable[str]) -> list[str]:
    """Turn short names and ``all`` into names of configs, each once; UserError for unknown ones."""
    known = {name: [name] for name in (*COOP, *DRAWN, *OWN)} | {"all": list(COOP)}
    known |= {source.short: [source.config] for source in read_sources().values()}
    full = []
    for name in names:
        if name not in known:
            raise errors.UserError(f"unknown data set '{name}'.{errors.nearest(name, known)}")
        full += known[name]
    return list(dict.fromkeys(full))


def advice_on(finding: Finding, folder: Path) -> str:
    """Return what to get where for something that is missing."""
    if os.path.lexists(finding.path):
        return f"'{finding.path}' is not complete: {finding.state}"
    places = " and ".join(f"'{folder / name}'" for name in finding.piece.makes)
    pages = ", or ".join(map(_page, finding.piece.addresses))
    return f"to have {places}: {f'get {pages}' if pages else finding.piece.by_hand}"


def _page(address: Address) -> str:
    size = tqdm.format_sizeof(address.size, "B") if address.size else ""
    checksum = address.checksum and f"SHA-256 {address.checksum}".replace("SHA-256 md5:", "MD5 ")
    facts = ", ".join(filter(None, [size, checksum]))
    return address.page + (f" ({facts})" if facts else "")


def main(argv: list[str]) -> int:
    """Print which files belong where, how to get missing ones, and which sets are complete."""
    parser = argparse.ArgumentParser("advprompt data", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("command", choices=("check",))
    add("names", nargs="*", metavar="NAME", help="data sets, or all")
    root = "CoOp's data folder (default: DATA of the environment, else data)"
    add("--root", default=os.environ.get("DATA") or "data", help=root)
    args = parser.parse_args(argv)
    if not args.names:
        raise errors.UserError("check what? name data sets, such as pets, or all")
    names, root = full_names(args.names), Path(args.root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise errors.UserError(f"--root '{root}' is not a folder; name that of the data sets")
    rows, advice, complete, incomplete = [], [], [], []
    for name in names:
        findings = look_at(name, root)
        rows += [["" if n else name, f.path, f.state] for n, f in enumerate(findings)]
        missing = [finding for finding in findings if finding.missing]
        (incomplete if missing else complete).append(name)
        if missing and name in COOP:
            folder, terms = root / COOP[name].dataset_dir, find_source(COOP[name]).terms
            advice += [advice_on(finding, folder) for finding in missing]
            advice.append(f"terms of use of {name}: {terms}")
    print(tabulate(rows, ["data set", "belongs here", "state"], disable_numparse=True))
    for sentence in dict.fromkeys(advice):
        print(f"\n{sentence}")
    print(f"\ncomplete: {', '.join(complete) or 'none'}")
    if incomplete:
        print(f"incomplete: {', '.join(incomplete)}")
    return 1 if incomplete else 0
