r"""Accuracy over one setting, drawn from the ``record.json`` files of finished runs.

    python -m advprompt curves output/ablations/naptuning_depth \
        --over TRAINER.NAPTUNING.PROMPT_DEPTH --out curve.png
    python -m advprompt curves output/shapes --over eps    # or steps, restarts: of the test attack
    python -m advprompt curves output/shapes --over DATASET.NUM_SHOTS --per-figure --out shots.png

One panel per group of comparable runs, which are the tables of ``advprompt report``: panels never
mix threat models, backbones, data or test subsets. Runs that differ in another setting are another
line. Points are means over seeds with their 95 % t-interval.
"""

from __future__ import annotations

import argparse
import sys

from ..report import curves, drawing, render, tables
from ..utils.errors import UserError


def main(argv: list[str]) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser("advprompt curves", description=__doc__.partition("\n")[0])
    parser.add_argument("roots", nargs="+", metavar="FOLDER", help="output folders, searched whole")
    parser.add_argument(
        "--over",
        required=True,
        metavar="KEY",
        help="the x axis: a setting, or eps, steps or restarts of the test attack",
    )
    parser.add_argument(
        "--along",
        nargs="+",
        default=[],
        metavar="KEY",
        help="settings that change together with it",
    )
    parser.add_argument(
        "--per-figure",
        action="store_true",
        help="a panel for clean and for each attack, for many lines",
    )
    parser.add_argument("--out", default="curve.png", metavar="FILE")
    args = parser.parse_args(argv)
    over_attacks = args.over in curves.AXES
    if over_attacks and args.along:
        raise UserError(
            f"--along {args.along[0]} works with config keys; over {args.over} everything else "
            "that differs is another line or panel, so leave --along out"
        )
    records, remarks = render.load(args.roots)
    if over_attacks:
        panels, notes = curves.attack_panels(records, args.over)
    else:
        found = tables.build_tables(records)
        panels, notes = curves.build_panels(found, args.over, args.along)
    panels = curves.per_figure(panels) if args.per_figure else panels
    title = curves.AXES.get(args.over, args.over)
    print(f"wrote {drawing.draw(args.out, panels, title)}")
    for note in notes + remarks:
        print(f"note: {note}", file=sys.stderr)
