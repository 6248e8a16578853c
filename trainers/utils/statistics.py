"""Means and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable

# two-sided 95 % quantiles of Student's t for 1 to 29 degrees of freedom (2 to 30 seeds)
_T95 = (
    12.7062,
    4.3027,
    3.1824,
    2.7764,
    2.5706,
    2.4469,
    2.3646,
    2.3060,
    2.2622,
    2.2281,
    2.2010,
    2.1788,
    2.1604,
    2.1448,
    2.1314,
    2.1199,
    2.1098,
    2.1009,
    2.0930,
    2.0860,
    2.0796,
    2.0739,
    2.0687,
    2.0639,
    2.0595,
    2.0555,
    2.0518,
    2.0484,
    2.0452,
)


def t95(samples: int) -> float:
    """Return the 0.975 quantile of Student's t for ``samples`` >= 2 values (1.96 above 30)."""
    return _T95[samples - 2] if samples <= 30 else 1.96


def mean_interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % t-interval.

    The half width is None for a single value, whose spread is unknown.
    """
    values = list(values)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, t95(len(values)) * math.sqrt(variance / len(values))


def harmonic_mean(a: float, b: float) -> float:
    """Return ``2ab / (a + b)`` of two accuracies, 0 where one of them is 0.

    For base-to-novel figures, give it the averages over seeds.
    """
    return 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0
