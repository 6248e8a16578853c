"""Tables of clean and robust accuracy, from the ``record.json`` files of finished runs.

    python -m advprompt report output/ --format markdown --out results.md
    python -m advprompt report output/ --format html --out results.html

Every figure is a mean over seeds with its 95 % t-interval. Runs under different threat models,
backbones, data or test subsets never share a table; base and new classes, source and target data
sets are side by side.
"""

import argparse
import sys
from pathlib import Path

from ..report import render
from ..utils.errors import UserError


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt report", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("roots", nargs="+", metavar="FOLDER", help="output folders, searched whole")
    add("--format", choices=render.FORMATS, default="terminal")
    add("--out", metavar="FILE", help="write there instead of printing")
    lines = "between the lines <!-- report NAME --> and <!-- end NAME --> of the file"
    add("--mark", metavar="NAME", help=f"with --out: {lines}, and nothing else")
    costs = "add trainable parameters and seconds per method"
    add("--costs", action="store_true", help=costs)
    add("--paper", action="store_true", help="add figures that papers published")
    args = parser.parse_args(argv)
    if args.mark and args.format == "html":
        raise UserError("--mark puts tables into a page, but html is a page; leave it out")
    if args.mark and not args.out:
        raise UserError(f"--mark {args.mark} names a place in a file; give --out FILE too")
    text, remarks = render.render(args.roots, args.format, costs=args.costs, paper=args.paper)
    if args.mark:
        render.put_between(Path(args.out), args.mark, text)
        print(f"wrote the tables '{args.mark}' in {args.out}")
    elif args.out:
        render.write(args.out, text + "\n")
        print(f"wrote {args.out}")
    else:
        print(text)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
