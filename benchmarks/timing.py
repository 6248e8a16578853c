"""Two ways of doing the same work, timed in turns so that both see the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def clock_for(device: str) -> tuple[Callable[[], float], str]:
    """Return a clock and its name: processor time, which sums over threads, only with one."""
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor time, one thread"
    return time.perf_counter, "wall time"


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return how long ``work`` takes; a GPU is waited for."""
    _wait()
    start = clock()
    work()
    _wait()
    return clock() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_flops(device: str, clock: Callable[[], float], size: int, dtype=torch.float32) -> float:
    """Return FLOP/s of a matrix product of ``size`` x ``size``, the best of five."""
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, clock) for _ in range(5))


def paired(
    ways: Mapping[str, Callable[[], object]], *, pairs: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of each way, run once to warm up and then in turns: A B A B ..."""
    for work in ways.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, work in ways.items():
            taken[name].append(seconds(work, clock))
    return taken


def ratio(plain: list[float], ours: list[float]) -> float:
    """Return the median over rounds of plain / ours: above 1 ours is faster."""
    return statistics.median(p / o for p, o in zip(plain, ours, strict=True))
