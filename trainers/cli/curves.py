r"""Accuracy over one setting, drawn from the ``record.json`` files of finished runs.

    python -m advprompt curves output/ablations/naptuning_depth \
        --over TRAINER.NAPTUNING.PROMPT_DEPTH --out curve.png
    python -m advprompt curves output/shapes --over eps    # or steps, restarts: of the test attack
    python -m advprompt curves output/shapes --over DATASET.NUM_SHOTS --per-figure --out shots.png

One panel per group of comparable runs, which are the tables of ``advprompt report``: panels never
mix threat models, backbones, data or test subsets. Runs that differ in another setting are another
line. Points are means over seeds with their 95 % t-interval.
"""

import argparse
import sys

from ..report import curves, drawing, render, tables
from ..utils.errors import UserError


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt curves", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("roots", nargs="+", metavar="FOLDER", help="output folders, searched whole")
    over = "the x axis: a setting, or eps, steps or restarts of the test attack"
    add("--over", required=True, metavar="KEY", help=over)
    along = "settings that change together with it"
    add("--along", nargs="+", default=[], metavar="KEY", help=along)
    per_figure = "a panel for clean and for each attack, for many lines"
    add("--per-figure", action="store_true", help=per_figure)
    add("--out", default="curve.png", metavar="FILE")
    args = parser.parse_args(argv)
    records, remarks = render.load(args.roots)
    if args.over not in curves.AXES:
        panels, notes = curves.build_panels(tables.build_tables(records), args.over, args.along)
    elif args.along:
        raise UserError(
            f"--along {args.along[0]} works with config keys; over {args.over} everything else "
            "that differs is another line or panel, so leave --along out"
        )
    else:
        panels, notes = curves.attack_panels(records, args.over)
    panels = curves.per_figure(panels) if args.per_figure else panels
    title = curves.AXES.get(args.over, args.over)
    print(f"wrote {drawing.draw(args.out, panels, title)}")
    for note in notes + remarks:
        print(f"note: {note}", file=sys.stderr)
