"""Medians, percentiles, and ratios of paired rounds with a bootstrap interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two sides with its bootstrap interval over the rounds."""

    value: float
    low: float
    high: float


def paired_ratio(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Ratio:
    """Median of first / second round by round, with a 95 % percentile interval.

    Rounds pair up because both sides of one ran next to each other on the same prompts: a drift of
    the machine changes both.
    """
    ratios = np.array(first) / np.array(second)
    picks = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def pooled_ratio(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    share: float,
    *,
    seed: int = 0,
) -> Ratio:
    """Percentile of all values of one side over that of the other; whole rounds are resampled.

    For tails, of which one round alone holds too few values.
    """
    num_rounds = min(len(first), len(second))
    rng = np.random.default_rng(seed)
    ones, twos = [np.array(x) for x in first], [np.array(x) for x in second]

    def of_rounds(picks: Sequence[int]) -> float:
        above = np.concatenate([ones[i] for i in picks])
        below = np.concatenate([twos[i] for i in picks])
        return percentile(above.tolist(), share) / percentile(below.tolist(), share)

    resampled = [
        of_rounds(rng.integers(num_rounds, size=num_rounds).tolist())
        for _ in range(RESAMPLES // 10)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Ratio(of_rounds(range(num_rounds)), float(low), float(high))


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank: the smallest value that at least `share` of all values do not exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
