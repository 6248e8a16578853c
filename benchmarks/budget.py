"""The budget table: whole jobs of the field on ViT-B/16, from steps timed on this device.

A job is measured by some of its units (a batch, a step) after a warm-up and stands for all of
them; decoding of images is left out. Towers and attacks run in bfloat16 autocast, AutoAttack in
float32, which is all it has. The limit is what the job's own operations would take at the speed of
the largest matrix product of that type seen here.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from . import jobs, memory
from .timing import peak_flops, seconds

PETS, SHOTS, TEST_IMAGES, IMAGENET = 37, 16, 3669, 1000  # classes, shots, images, classes
EPOCHS, BATCH = 100, 32


@dataclass
class Budget:
    """One job: ``units`` times ``unit``, to be done in ``budget`` seconds on one H200."""

    name: str
    unit: Callable[[], object]
    units: float
    budget: float | None
    dtype: torch.dtype = torch.bfloat16


def makers(clip, device: str, batch: int = 128) -> list[Callable[[], Budget]]:
    """Return the makers of all jobs; ``batch`` images at once where nothing is trained."""
    shots = PETS * SHOTS  # 592 images
    steps = shots // BATCH  # an incomplete batch is dropped

    def in_bf16(work: Callable[[], object]) -> Callable[[], object]:
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)
        return autocast(work)

    def training(where: str, classes: int, units: float, budget: float) -> Budget:
        size = min(batch, BATCH)
        job = jobs.training(clip, classes, size, 0, prec="bf16")
        name = f"adversarial training, {where} 16 shots, {EPOCHS} epochs, PGD-2"
        return Budget(name, in_bf16(job.ours), units * BATCH / size, budget)

    def bank() -> Budget:
        job = jobs.bank(clip, batch, prec="bf16")
        return Budget("AdvPT bank, Pets 16 shots, PGD-10", job.ours, shots / batch, 3)

    def tuning() -> Budget:
        job = jobs.tuning(clip, PETS)
        name = f"AdvPT tuning, {EPOCHS} epochs x 19 steps"
        return Budget(name, in_bf16(job.ours), EPOCHS * math.ceil(shots / BATCH), 6)

    def evaluation() -> Budget:
        job = jobs.evaluation(clip, PETS, batch, steps=10, prec="bf16")
        return Budget("PGD-100 test, Pets 3,669 images", job.ours, TEST_IMAGES / batch * 10, 85)

    def strongest() -> Budget:
        size = min(batch, 25)
        unit, name = jobs.autoattack(clip, PETS, size), "AutoAttack, 100 images that nothing breaks"
        return Budget(name, unit, 50 * 100 / size, None, torch.float32)

    return [
        bank,
        tuning,
        lambda: training("Pets", PETS, EPOCHS * steps, 30),
        lambda: training("ImageNet", IMAGENET, EPOCHS * IMAGENET * SHOTS // BATCH, 1000),
        evaluation,
        strongest,
    ]


def table(device: str, name="ViT-B/16", *, rounds=5, batch=128, size=8192) -> list[dict]:
    """Measure ``rounds`` units of each job; a product of ``size`` gives the speed."""
    clock = time.perf_counter
    clip, rows = jobs.backbone(name, device), []
    speed = {t: peak_flops(device, clock, size, t) for t in (torch.bfloat16, torch.float32)}
    for make in makers(clip, device, batch):
        job = make()
        peak = memory.peak_of(job.unit, device)
        taken = [seconds(job.unit, clock) for _ in range(rounds)]
        with FlopCounterMode(display=False) as counter:
            job.unit()
        row = {"job": job.name, "backbone": name, "units": job.units, "budget_seconds": job.budget}
        row["seconds"] = statistics.median(taken) * job.units
        row["limit_seconds"] = counter.get_total_flops() * job.units / speed[job.dtype]
        row |= {"share_of_peak": row["limit_seconds"] / row["seconds"], "peak_mib": peak / 2**20}
        rows.append(row)
    return rows


def shown(rows: list[dict]) -> str:
    columns = ("seconds", "limit_seconds", "budget_seconds", "share_of_peak", "peak_mib")
    lines = [
        [row["job"], *(f"{row[column] or math.nan:.3g}" for column in columns)] for row in rows
    ]
    heads = [f"job ({rows[0]['backbone']})", *"s,limit s,budget s (H200),of peak,MiB".split(",")]
    return tabulate(lines, heads, disable_numparse=True)
