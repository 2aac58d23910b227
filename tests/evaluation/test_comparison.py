import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from finlora.evaluation.comparison import paired
from tests.evaluation.outcomes import LABELS, random_outcome


def test_differences_are_of_the_same_rows() -> None:
    weak, strong = random_outcome(300, 1, "weak", skill=0.5), random_outcome(300, 2, "strong")
    found = paired(weak, strong)
    gain = np.array(strong.hits, float) - np.array(weak.hits, float)
    difference = found.differences["accuracy"]
    assert difference.value == pytest.approx(gain.mean())
    spread = gain.std() / np.sqrt(300)
    assert difference.low == pytest.approx(gain.mean() - 1.96 * spread, abs=0.3 * spread)
    assert difference.high == pytest.approx(gain.mean() + 1.96 * spread, abs=0.3 * spread)
    scores = [
        f1_score(o.expected, list(o.predicted), labels=LABELS, average="macro")
        for o in (weak, strong)
    ]
    assert found.differences["macro_f1"].value == pytest.approx(scores[1] - scores[0])


def test_mcnemar_is_the_exact_binomial_test() -> None:
    found = paired(random_outcome(200, 1, skill=1.5), random_outcome(200, 2, skill=1.2))
    test = found.test
    right = binomtest(test.num_gained, test.num_gained + test.num_lost).pvalue
    assert test.p_value == pytest.approx(right)


def test_a_model_is_no_better_than_itself() -> None:
    found = paired(random_outcome(80, 1), random_outcome(80, 1))
    assert found.agreement == 1
    assert found.as_dict()["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert found.test.p_value == 1
