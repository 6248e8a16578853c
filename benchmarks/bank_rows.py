"""A bank of more rows than should be in memory: made from parts, shuffled, gone through once.

    OMP_NUM_THREADS=1 python -m benchmarks.bank_rows --rows 1000000 --json bank_rows.json

The rows are random, in parts as ``build_bank`` writes them; joining the parts, opening the bank,
and the batches of one epoch are the program's own. Printed are seconds and the peak memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from advprompt import advpt
from advprompt.evaluation import bank
from advprompt.utils import errors, io, machine
from advprompt.utils.entry import run_tool

from . import memory

KEY = "0" * 64


def peak() -> float:
    """Return the most memory that this process has had so far, in MiB (Linux)."""
    return memory.resident("VmHWM") / 2**20


def write_parts(folder: Path, rows: int, width: int, chunk: int):
    """Write random parts as a run writes them; return what knows them."""
    parts = bank.Parts(folder, KEY, rows, 1, chunk)
    generator = torch.Generator().manual_seed(0)
    for number in tqdm(range(len(parts)), "parts", unit="part"):
        features = torch.randn(len(parts.span(number)), width, generator=generator)
        parts.save(number, features, {"n": len(features)}, 0.0, bank=folder / "none")
    return parts


def measure(folder: Path, rows: int, width: int, chunk: int, batch: int) -> list[dict]:
    """Return the seconds of each step and the peak memory (MiB) up to its end."""
    steps = []

    def step(name, work):
        clock = time.perf_counter()
        result = work()
        steps.append({"step": name, "seconds": time.perf_counter() - clock, "peak": peak()})
        return result

    path = folder / f"{KEY}.safetensors"
    labels = [i % 1000 for i in range(rows)]
    parts = step("write the parts", lambda: write_parts(folder / "parts", rows, width, chunk))
    step("join them", lambda: bank.join(parts, path, labels, None))
    opened = step("open and verify", lambda: bank.load_bank(path, key=KEY))
    loader = advpt.BankLoader(opened, batch, 0, torch.device("cpu"))
    step("one epoch, shuffled", lambda: one_epoch(loader, rows, width))
    return steps


def one_epoch(loader, rows: int, width: int) -> None:
    """Go through all batches of as many rows as there are."""
    count = 0
    for each in tqdm(loader, "epoch", unit="batch", mininterval=1):
        count += len(each["label"])
        if each["img"].shape != (len(each["label"]), width):
            raise RuntimeError(f"a batch is {tuple(each['img'].shape)}")
    if count != rows:
        raise RuntimeError(f"{count} rows came, of {rows}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bank_rows", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512, help="of a feature (ViT-B: 512)")
    parser.add_argument("--chunk", type=int, default=256, help="rows of a part")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--folder", help="for the files; default: a temporary one")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    for name in ("rows", "width", "chunk", "batch"):
        if getattr(args, name) < 1:
            raise errors.UserError(f"--{name} is {getattr(args, name)}, expected at least 1")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bank_rows-") as folder:
        before = peak()
        steps = measure(Path(folder), args.rows, args.width, args.chunk, args.batch)
    table = [[s["step"], f"{s['seconds']:.1f}", f"{s['peak']:.0f}"] for s in steps]
    print(tabulate(table, ["step", "seconds", "peak MiB"], disable_numparse=True))
    size = 4 * args.rows * args.width / 2**20
    print(f"{args.rows:,} rows of {args.width}: {size:.0f} MiB; {before:.0f} MiB before the first")
    if args.json:
        facts = {"rows": args.rows, "width": args.width, "batch": args.batch, "before": before}
        io.write_json(args.json, facts | {"versions": machine.environment(), "steps": steps})
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
