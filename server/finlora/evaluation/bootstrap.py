"""How far a number would move with other rows: seeded bootstrap intervals. Pure arithmetic.

Every statistic here is a function of sums over rows, so a resample is a vector of row weights and
all resamples are one matrix product.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
CHUNK = 200  # resamples at a time: 200 weights a row in memory
QUANTILES = (0.025, 0.975)

Array = NDArray[np.float64]
# [..., num_columns] sums over rows -> [...] values
Statistic = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval (percentiles of the bootstrap, Efron 1979)."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded, for JSON."""
        return {name: round(getattr(self, name), 6) for name in ("value", "low", "high")}


def estimates(
    columns: Array, statistics: dict[str, Statistic], *, seed: int = 0
) -> dict[str, Estimate]:
    """Every statistic of [num_rows, num_columns], each row resampled as a whole."""
    whole = columns.sum(0)
    resampled = np.concatenate([weights @ columns for weights in _weights(len(columns), seed)])
    return {
        name: interval(float(statistic(whole)), statistic(resampled))
        for name, statistic in statistics.items()
    }


def resampled_quantile(values: Array, q: float, *, seed: int = 0) -> Estimate:
    """A quantile of the rows' values."""
    generator = np.random.default_rng(seed)
    chunks = (min(CHUNK, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, CHUNK))
    drawn = (generator.integers(len(values), size=(size, len(values))) for size in chunks)
    resampled = np.concatenate([np.quantile(values[rows], q, axis=1) for rows in drawn])
    return interval(float(np.quantile(values, q)), resampled)


def interval(value: float, resampled: Array) -> Estimate:
    """The estimate of a value that came out differently in every resample."""
    low, high = np.quantile(resampled, QUANTILES)
    return Estimate(value, float(low), float(high))


def _weights(num_rows: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn: [CHUNK, num_rows] at a time."""
    generator = np.random.default_rng(seed)
    chances = np.full(num_rows, 1 / num_rows)
    for start in range(0, NUM_RESAMPLES, CHUNK):
        size = min(CHUNK, NUM_RESAMPLES - start)
        yield generator.multinomial(num_rows, chances, size=size).astype(np.float64)
