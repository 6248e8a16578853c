"""Peak memory of one side of one row, in a process of its own: a process remembers every peak."""

import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from . import jobs

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


def of_side(row: int, side: str, backbone: str, device: str, **table) -> int | None:
    """Measure ``side`` of row ``row`` (from 1); None where the system does not report it.

    ``table`` is what :func:`jobs.ratio_table` takes.
    """
    if device == "cpu" and not RESET.exists():
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure, row, side, backbone, device, table).result()


def _measure(row: int, side: str, backbone: str, device: str, table: dict) -> int:
    job = jobs.ratio_table(jobs.backbone(backbone, device), **table)[row - 1]()
    return peak_of(getattr(job, side), device)
