"""The ratio table: plain computation against this project's, in pairs, on one machine.

    OMP_NUM_THREADS=1 python -m benchmarks.run --json ratios.json --figure ratios.png
    python -m benchmarks.run --quick --backbone tiny

Prints one line per job: median seconds of either side, the median ratio of the rounds, the largest
relative difference between the results, the peak memory of either side (above what the model holds
before it starts, each in a process of its own), and the share of the machine's own matrix-product
speed. On a GPU the budget table follows: whole jobs of the field on ViT-B/16, see ``budget.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from advprompt.backbone import load_clip, make_adapter
from advprompt.utils import errors, io, machine
from advprompt.utils.entry import run_tool

from . import budget, jobs, memory, timing

RANDOM = {"ViT-B/32", "ViT-B/16", "ViT-L/14"}


def backbone(name: str, device: str):
    """Return a backbone; OpenAI's names come with random weights, whose speed is the same."""
    if name not in RANDOM:
        return load_clip(name, device=device)
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name.replace("/", "-"), force_quick_gelu=True)
    return make_adapter(model.state_dict(), name=name, provider="open_clip").to(device)


def measure(make, pairs: int, clock, peak: float) -> dict:
    """Return one row, but for its memory."""
    job = make()
    taken = timing.paired({"plain": job.plain, "ours": job.ours}, pairs=pairs, clock=clock)
    with FlopCounterMode(display=False) as counter:
        job.ours()
    mine = statistics.median(taken["ours"])
    return {
        "job": job.name,
        "plain_seconds": statistics.median(taken["plain"]),
        "ours_seconds": mine,
        "ratio": timing.ratio(taken["plain"], taken["ours"]),
        "at_least": job.at_least,
        "max_difference": job.difference(),
        "share_of_peak": counter.get_total_flops() / mine / peak,
    }


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what decides about the work itself."""
    parser.add_argument("--backbone", default="ViT-B/32", help="name; ViT-B/32 with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--classes", type=int, default=250, help="of the job with many classes")
    parser.add_argument("--quick", action="store_true", help="smaller batches, three rounds")
    return parser


def shown(rows: list[dict]) -> str:
    """Return the ratio table."""

    def mebibytes(row: dict, side: str) -> str:
        count = row["peak_memory"][side]
        return "-" if count is None else f"{count / 2**20:.0f}"

    columns: dict[str, Callable[[dict], str]] = {
        "job": lambda row: row["job"],
        "plain s": lambda row: f"{row['plain_seconds']:.3g}",
        "ours s": lambda row: f"{row['ours_seconds']:.3g}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
        "to reach": lambda row: f"{row['at_least']:g}",
        "difference": lambda row: f"{row['max_difference']:.1e}",
        "plain MiB": lambda row: mebibytes(row, "plain"),
        "ours MiB": lambda row: mebibytes(row, "ours"),
        "of peak": lambda row: f"{100 * row['share_of_peak']:.0f} %",
    }
    table = [[show(row) for show in columns.values()] for row in rows]
    return tabulate(table, list(columns), disable_numparse=True)


def figure(path: str, rows: list[dict], caption: str) -> None:
    """Draw the ratios next to those to reach."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, ax = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))
    bars = ax.barh(places, [row["ratio"] for row in rows], color="#4477aa", label="measured")
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.plot([row["at_least"] for row in rows], places, "k|", ms=18, label="to reach")
    ax.set_yticks(places, [row["job"] for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel("times faster than the plain computation")
    ax.set_title(caption, fontsize=8)
    ax.legend(fontsize=8)
    with io.atomic_write(path) as part:
        fig.savefig(part, format="png", dpi=150)
    pyplot.close(fig)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run", description=__doc__.partition("\n")[0])
    arguments(parser)
    parser.add_argument("--pairs", type=int, default=5, help="rounds per job (default 5)")
    parser.add_argument("--jobs", type=int, nargs="+", metavar="N", help="only these rows, from 1")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--figure", metavar="FILE", help="also draw the ratios there (png)")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise errors.UserError(f"--device {args.device} needs a GPU that torch sees; use cpu")

    clock, kind = timing.clock_for(args.device)
    clip = backbone(args.backbone, args.device)
    makers = jobs.ratio_table(clip, quick=args.quick, many=args.classes)
    chosen = args.jobs or range(1, len(makers) + 1)
    if bad := [n for n in chosen if not 1 <= n <= len(makers)]:
        raise errors.UserError(f"--jobs {bad[0]} is no row; there are rows 1 to {len(makers)}")
    options = ["--backbone", args.backbone, "--device", args.device]
    options += ["--classes", str(args.classes), *(["--quick"] if args.quick else [])]
    size = 1024 if args.device == "cpu" else 4096
    peak, rows = timing.peak_flops(args.device, clock, size), []
    for n in chosen:
        print(f"row {n} of {len(makers)} ...", file=sys.stderr, flush=True)
        row = measure(makers[n - 1], 3 if args.quick else args.pairs, clock, peak)
        row["peak_memory"] = {
            side: None if args.no_memory else memory.of_side(options, n, side)
            for side in ("plain", "ours")
        }
        rows.append(row)
    print(shown(rows))
    caption = f"{args.backbone} on {machine.device_name(args.device)}, float32, {kind}"
    print(f"{caption}, peak {peak / 1e9:.0f} GFLOP/s")
    facts = {"backbone": args.backbone, "device": args.device, "clock": kind, "peak": peak}
    facts |= {"environment": machine.environment(args.device), "rows": rows}
    if args.device != "cpu":
        facts["budget"] = budget.table(backbone, args.device)
        print(budget.shown(facts["budget"]))
    if args.json:
        io.write_json(args.json, facts)
    if args.figure:
        figure(args.figure, rows, caption)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
