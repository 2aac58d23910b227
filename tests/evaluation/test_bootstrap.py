import numpy as np
import pytest
from scipy import stats

from finlora.evaluation.bootstrap import estimates, resampled_quantile


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=300)
    ours = estimates(values[:, None], {"mean": lambda sums: sums[..., 0] / 300})["mean"]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


def test_the_same_seed_gives_the_same_interval() -> None:
    columns = np.random.default_rng(1).random((40, 1))
    first, again, other = (
        estimates(columns, {"sum": lambda sums: sums[..., 0]}, seed=seed)["sum"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_quantile_lies_in_its_interval() -> None:
    values = np.random.default_rng(1).random(500)
    found = resampled_quantile(values, 0.5)
    assert found.low <= found.value == np.median(values) <= found.high
    # Between the order statistics that the binomial law gives for a median of 500.
    ordered = np.sort(values)
    assert ordered[220] < found.low
    assert found.high < ordered[280]
