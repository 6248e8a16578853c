"""A GPU against the CPU: the same answers, gradients, attacks and trainings.

    bash benchmarks/gpu.sh                         # all parts, each with a time limit
    python -m benchmarks.gpu forward --device cuda

Every part prints one line per comparison, a JSON object with what was compared, the figure, and
whether it is within the stated bound. ``--device cpu`` compares the CPU with itself: it shows that
the script runs, and the figures are 0.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from advprompt.utils import io, machine
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError
from tests.gpu.checks import CHECKS, SAME, line

from . import budget as budgets
from . import jobs, timing


def levers(device: str, quick: bool) -> Iterator[dict]:
    """Each switch of speed, off and on in turns: how many times faster, and what it changes."""
    name, batch, gpu = "tiny" if quick else "ViT-B/16", 8 if quick else 64, device != "cpu"

    def made(make: Callable[..., jobs.Job], *sizes: int, fast: dict, **own) -> Callable:
        torch.manual_seed(0)  # of the prompts
        clip = jobs.backbone(name, device)
        clip.hasten(**fast)
        return make(clip, *sizes, **own).ours

    def step(fused: bool) -> Tensor:
        values = [torch.linspace(-1, 1, 2048, device=device).requires_grad_() for _ in range(18)]
        optimizer = torch.optim.AdamW(values, fused=fused)
        for value in values:
            value.grad = value.detach().sin()
        optimizer.step()
        return torch.cat(values).detach()

    attack, images = partial(made, jobs.evaluation, 37, batch), torch.rand(batch, 3, 224, 224)
    tuned, plain = partial(made, jobs.tuning, 37, fast={}), attack(fast={})
    ways = {
        "ATTACK.TEST.PREC bf16": (plain, attack(fast={}, prec="bf16")),
        "MODEL.BACKBONE.CHANNELS_LAST": (plain, attack(fast={"last": True})),
        "OPTIM.FUSED": (partial(step, False), partial(step, True)),
    }
    if gpu or not quick:  # compiling takes a minute on a CPU
        ways["MODEL.BACKBONE.COMPILE"] = plain, attack(fast={"compiled": True})
    if gpu:
        pinned = lambda: images.pin_memory().to(device, non_blocking=True)  # noqa: E731
        ways["DATALOADER.TEST.PIN_MEMORY"] = partial(images.to, device), pinned
        ways["TRAINER.ADVERSARIAL.CUDA_GRAPH"] = tuned(), tuned(graph=True)
    for key, (off, on) in ways.items():
        taken = timing.paired({"off": off, "on": on}, pairs=3, clock=time.perf_counter)
        differ = float(((off() - on()).abs() > SAME).float().mean())
        yield line(f"{key}: times faster", timing.ratio(taken["off"], taken["on"]))
        yield line(f"{key}: share of values that differ", differ)


def budget(device: str, quick: bool) -> Iterator[dict]:
    """Whole jobs of the field, next to what they should take and to the limit."""
    small = {"name": "tiny", "rounds": 1, "batch": 4, "size": 512} if quick else {"rounds": 3}
    rows = budgets.table(device, **small)
    print(budgets.shown(rows))
    for row in rows:
        yield row | line(row["job"], row["seconds"], None if quick else row["budget_seconds"])


PARTS = {f.__name__: f for f in (*CHECKS, budget, levers)}
SECONDS = {"forward": 45, "tf32": 15, "attacks": 65, "training": 135, "waits": 25}  # 480 in all
SECONDS |= {"budget": 80, "ratios": 60, "levers": 55}


def everything(device: str, quick: bool, out: Path) -> Iterator[dict]:
    """Run every part in a process of its own; one that takes too long does not hide the others."""
    flags = ["--device", device, *(["--quick"] if quick else [])]
    backbone = "tiny" if quick else "ViT-B/16"
    for part, seconds in SECONDS.items():
        limit = seconds if device != "cpu" else 10 * seconds  # shared cores
        words = ["benchmarks.gpu", part, *flags]
        if part == "ratios":
            words = ["benchmarks.run", *flags[:2], "--quick", "--no-memory"]
            words += ["--backbone", backbone, "--json", str(out / "ratios.json")]
            words += ["--jobs", "1", "3", "6"] if quick else []
        print(f"== {part}", flush=True)
        with (out / f"{part}.log").open("w") as log:
            command = [sys.executable, "-m", *words]
            try:
                code = subprocess.run(command, stdout=log, stderr=log, timeout=limit).returncode
                why = f"ended with {code}, see {part}.log" if code else ""
            except subprocess.TimeoutExpired:
                why = f"was stopped after {limit} s"
        lines = (out / f"{part}.log").read_text().splitlines()
        rows = [json.loads(row) for row in lines if row.startswith('{"part"')]
        yield from rows
        if part in ("ratios", "budget"):
            print("\n".join(row for row in lines if not row.startswith('{"part"')))
        if why and all(row["holds"] for row in rows):
            yield {"part": part} | line(f"it {why}", 1, 0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="of all parts")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device} needs a GPU that torch sees; use cpu")
    if args.part != "all":
        holds = True
        for row in PARTS[args.part](args.device, args.quick):
            print(json.dumps({"part": args.part} | row), flush=True)
            holds &= row["holds"]
        return int(not holds)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = list(everything(args.device, args.quick, args.out))
    io.write_json(args.out / "gpu.json", machine.environment(args.device) | {"rows": rows})
    heads = ["part", "what", "figure", "bound", "holds"]
    table = [[row[head] for head in heads] for row in rows]
    print(tabulate(table, heads, floatfmt=".3g", missingval="-"))
    print(f"{machine.device_name(args.device)}, torch {torch.__version__}; {args.out}/gpu.json")
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(run_tool(main))
