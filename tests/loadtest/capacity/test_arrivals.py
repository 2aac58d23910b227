from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from loadtest.capacity.arrivals import arrivals


@settings(deadline=None)
@given(st.floats(0.1, 50), st.floats(0.1, 20), st.integers(0, 2**31))
def test_the_offered_rate_is_exact_and_repeatable(rate: float, seconds: float, seed: int) -> None:
    times = arrivals(rate, seconds, seed)
    assert len(times) == round(rate * seconds)
    assert times == sorted(times)
    assert all(0 <= time <= seconds for time in times)
    assert times == arrivals(rate, seconds, seed)


def test_gaps_are_exponential_as_those_of_independent_clients() -> None:
    times = arrivals(rate=50, seconds=100, seed=4)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert stats.kstest(gaps, stats.expon(scale=1 / 50).cdf).pvalue > 0.01


def test_counts_in_equal_stretches_vary_as_poisson_counts_do() -> None:
    times = arrivals(rate=20, seconds=500, seed=5)
    counts = np.bincount([int(time) for time in times], minlength=500)
    assert 0.8 < counts.var() / counts.mean() < 1.2
