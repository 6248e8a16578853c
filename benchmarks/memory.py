"""Peak memory of one side of one row, in a process of its own.

    python -m benchmarks.memory --backbone tiny --row 1 --side ours

Prints the bytes that the work needs at its height, above what the model holds before it starts. A
process remembers every peak, so each side of a row needs its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from advprompt.utils.entry import run_tool

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")  # "5" forgets the highest resident size so far (Linux)


def resident(kind: str) -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (at most so far) of this process in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[kind].split()[0]) * 1024


def peak_of(work: Callable[[], object], device: str) -> int:
    """Return the bytes at the height of ``work`` above those before it."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):  # glibc: give back what loading has freed
        ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = resident("VmRSS")
    work()
    return max(resident("VmHWM") - before, 0)


def of_side(options: list[str], row: int, side: str) -> int | None:
    """Measure in a new process; None where the system does not report it.

    Raises:
        RuntimeError: the process failed, with the end of its output.
    """
    if not RESET.exists() and "cuda" not in options:
        return None
    words = ["-m", "benchmarks.memory", *options, "--row", str(row), "--side", side]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of row {row} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    from . import jobs, run

    parser = run.arguments(argparse.ArgumentParser(prog="memory"))
    parser.add_argument("--row", type=int, required=True)
    parser.add_argument("--side", choices=("plain", "ours"), required=True)
    args = parser.parse_args(argv)
    clip = run.backbone(args.backbone, args.device)
    makers = jobs.ratio_table(clip, quick=args.quick, many=args.classes)
    job = makers[args.row - 1]()
    print(json.dumps(peak_of(getattr(job, args.side), args.device)))
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
