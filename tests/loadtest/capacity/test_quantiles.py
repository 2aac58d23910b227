import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from loadtest.capacity.quantiles import quantile


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40), st.sampled_from([0.5, 0.95]))
def test_value_and_interval_are_in_order(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found.value == np.percentile(values, share * 100, method="inverted_cdf")
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("count", [59, 200, 1000, 4000])
def test_the_interval_cuts_off_what_a_binomial_does(count: int, share: float) -> None:
    ranks = [float(rank) for rank in range(1, count + 1)]
    found = quantile(ranks, share)
    below = stats.binom(count, share)
    # The true quantile lies below `low` when fewer than `low` values do not exceed it.
    assert below.cdf(found.low - 1) <= 0.025 < below.cdf(found.low)
    if math.isfinite(found.high):
        assert below.sf(found.high - 1) <= 0.025 < below.sf(found.high - 2)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth = float(stats.expon.ppf(0.95))
    draws = rng.exponential(size=(1000, 150))
    intervals = [quantile(draw.tolist(), 0.95) for draw in draws]
    covered = sum(each.low <= truth <= each.high for each in intervals)
    assert 930 <= covered <= 990


def test_few_values_leave_the_upper_end_open() -> None:
    found = quantile([1.0, 2.0, 3.0], 0.95)
    assert (found.value, found.low, found.high) == (3.0, 2.0, math.inf)


def test_missing_answers_are_slower_than_every_other() -> None:
    found = quantile([*[0.1] * 93, *[math.inf] * 7], 0.95)
    assert found.value == math.inf
    assert found.low == 0.1


def test_nothing_has_no_quantile() -> None:
    assert math.isnan(quantile([], 0.95).value)
