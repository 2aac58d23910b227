"""Quantiles with intervals that assume nothing about the distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finlora.bench.statistics import percentile

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Quantile:
    """A sample quantile and the order statistics around it; infinite where answers are missing."""

    value: float
    low: float
    high: float


def quantile(values: Sequence[float], share: float) -> Quantile:
    """By nearest rank, with a 95 % interval; NaN without values.

    The number of values below the true quantile is binomial (n, share), so the interval runs
    between the values whose ranks cut off 2.5 % of that distribution on either side. Neighbouring
    latencies of a queue are alike, so the truth is somewhat less certain than this.
    """
    if not values:
        return Quantile(math.nan, math.nan, math.nan)
    ordered, tail = sorted(values), (1 - CONFIDENCE) / 2
    low = _binomial_quantile(len(ordered), share, tail)
    high = _binomial_quantile(len(ordered), share, 1 - tail) + 1
    return Quantile(
        percentile(ordered, share),
        ordered[max(0, low - 1)],
        ordered[high - 1] if high <= len(ordered) else math.inf,
    )


def _binomial_quantile(n: int, share: float, probability: float) -> int:
    """The smallest k for which P(X <= k) is at least `probability`."""
    total = 0.0
    for k in range(n + 1):
        total += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(share)
            + (n - k) * math.log1p(-share)
        )
        if total >= probability:
            return k
    return n
