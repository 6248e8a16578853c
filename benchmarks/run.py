"""The ratio table: plain computation against this project's, in pairs, on one machine.

    OMP_NUM_THREADS=1 python -m benchmarks.run --json ratios.json
    python -m benchmarks.run --quick --backbone tiny

Prints one line per job: median seconds of either side, the median ratio of the rounds, the largest
relative difference between the results, the peak memory of either side (above what the model holds
before it starts, each in a process of its own), and the share of the machine's own matrix-product
speed. Whole jobs of the field are timed by ``python -m benchmarks.gpu budget``.
"""

import argparse
import statistics
import sys

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from advprompt.utils import errors, io, machine
from advprompt.utils.entry import run_tool

from . import jobs, memory, timing


def measure(make, pairs: int, clock, peak: float) -> dict:
    """Return one row, but for its memory."""
    job = make()
    taken = timing.paired({"plain": job.plain, "ours": job.ours}, pairs=pairs, clock=clock)
    with FlopCounterMode(display=False) as counter:
        job.ours()
    mine = statistics.median(taken["ours"])
    return {
        "job": job.name,
        "code": job.code,
        "plain_seconds": statistics.median(taken["plain"]),
        "ours_seconds": mine,
        "ratio": timing.ratio(taken["plain"], taken["ours"]),
        "at_least": job.at_least,
        "max_difference": job.difference(),
        "share_of_peak": counter.get_total_flops() / mine / peak,
    }


def shown(rows: list[dict]) -> str:
    heads = "job,plain s,ours s,ratio,to reach,difference,plain MiB,ours MiB,of peak,plain is"
    heads = heads.split(",")
    table = [
        [
            row["job"],
            f"{row['plain_seconds']:.3g}",
            f"{row['ours_seconds']:.3g}",
            f"{row['ratio']:.2f}",
            f"{row['at_least']:g}",
            f"{row['max_difference']:.1e}",
            *("-" if n is None else f"{n / 2**20:.0f}" for n in row["peak_memory"].values()),
            f"{100 * row['share_of_peak']:.0f} %",
            row["code"],
        ]
        for row in rows
    ]
    return tabulate(table, heads, disable_numparse=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--backbone", default="ViT-B/32", help="name; ViT-B/32 with random weights")
    add("--device", default="cpu")
    add("--classes", type=int, default=250, help="of the job with many classes")
    add("--quick", action="store_true", help="smaller batches, three rounds")
    add("--pairs", type=int, default=5, help="rounds per job (default 5)")
    add("--jobs", type=int, nargs="+", metavar="N", help="only these rows, from 1")
    add("--no-memory", action="store_true", help="leave out the peak memory")
    add("--json", metavar="FILE", help="also write the rows there")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise errors.UserError(f"--device {args.device} needs a GPU that torch sees; use cpu")

    clock, kind = timing.clock_for(args.device)
    what, table = (args.backbone, args.device), {"quick": args.quick, "many": args.classes}
    makers = jobs.ratio_table(jobs.backbone(*what), **table)
    chosen = args.jobs or range(1, len(makers) + 1)
    if bad := [n for n in chosen if not 1 <= n <= len(makers)]:
        raise errors.UserError(f"--jobs {bad[0]} is no row; there are rows 1 to {len(makers)}")
    size = 1024 if args.device == "cpu" else 4096
    peak, rows = timing.peak_flops(args.device, clock, size), []
    for n in chosen:
        print(f"row {n} of {len(makers)} ...", file=sys.stderr, flush=True)
        row = measure(makers[n - 1], 3 if args.quick else args.pairs, clock, peak)
        row["peak_memory"] = {
            side: None if args.no_memory else memory.of_side(n, side, *what, **table)
            for side in ("plain", "ours")
        }
        rows.append(row)
    print(shown(rows))
    caption = f"{args.backbone} on {machine.device_name(args.device)}, float32, {kind}"
    print(f"{caption}, peak {peak / 1e9:.0f} GFLOP/s")
    facts = {"backbone": args.backbone, "device": args.device, "clock": kind, "peak": peak}
    facts |= {"environment": machine.environment(args.device), "rows": rows}
    if args.json:
        io.write_json(args.json, facts)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
