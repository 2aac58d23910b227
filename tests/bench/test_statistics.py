import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finlora.bench.statistics import paired_ratio, percentile, pooled_ratio


def test_the_ratio_is_paired_by_round() -> None:
    """The machine halves its speed in round two: the ratio does not notice, the medians would."""
    found = paired_ratio([80.0, 40.0, 80.0], [10.0, 5.0, 10.0])
    assert (found.value, found.low, found.high) == (8.0, 8.0, 8.0)


def test_the_interval_spans_the_rounds_and_holds_the_median() -> None:
    found = paired_ratio([80.0, 90.0, 100.0], [10.0, 10.0, 10.0])
    assert found.value == 9.0
    assert 8.0 <= found.low < 9.0 < found.high <= 10.0


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(98, 3, 15), rng.normal(100, 3, 15)
    found = paired_ratio(first.tolist(), second.tolist())
    theirs = stats.bootstrap(
        (first / second,), np.median, n_resamples=20_000, method="percentile", rng=rng
    ).confidence_interval
    assert found.value == pytest.approx(np.median(first / second))
    assert found.low == pytest.approx(theirs.low, abs=0.006)
    assert found.high == pytest.approx(theirs.high, abs=0.006)


def test_rounds_must_pair_up() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_percentiles_are_those_of_numpy_by_nearest_rank(values: list[float], share: float) -> None:
    # What numpy calls "inverted_cdf" is the nearest rank.
    theirs = np.quantile(values, share, method="inverted_cdf")
    assert percentile(values, share) == theirs


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


def test_a_pooled_ratio_compares_the_tails_of_all_rounds_together() -> None:
    slow = [[1.0] * 99 + [20.0], [1.0] * 99 + [20.0]]
    even = [[1.0] * 100, [1.0] * 100]
    assert pooled_ratio(slow, even, 1.0).value == 20.0
    assert pooled_ratio(slow, even, 0.5).value == 1.0
    assert pooled_ratio(even, even, 0.99).high == 1.0


def test_the_interval_of_a_pooled_ratio_knows_that_rounds_differ() -> None:
    uneven = [[1.0] * 50, [2.0] * 50, [1.5] * 50]
    even = [[1.0] * 50] * 3
    found = pooled_ratio(uneven, even, 0.5)
    assert found.low < found.value < found.high
