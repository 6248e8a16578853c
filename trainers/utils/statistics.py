"""Means and intervals over seeds, and counts that chance does not explain."""

import math
from collections.abc import Iterable

RARE = 0.01  # chance of a count that is reported


def unlikely(count: int, samples: int, share: float) -> bool:
    """Return True if chance explains ``count`` of ``samples`` in less than 1 of 100 cases.

    Each sample has the probability ``share``, in (0, 1).
    """
    from scipy.special import bdtrc

    return count > 0 and float(bdtrc(count - 1, samples, share)) < RARE


def mean_interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % t-interval.

    The half width is None for a single value, whose spread is unknown.
    """
    values = list(values)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit  # scipy.stats.t.ppf, without importing all of scipy.stats

    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance / len(values))


def harmonic_mean(a: float, b: float) -> float:
    """Return ``2ab / (a + b)`` of two accuracies, 0 where one of them is 0.

    For base-to-novel figures, give it the averages over seeds.
    """
    return 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0
