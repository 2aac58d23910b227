import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from finlora.evaluation.measures import measure
from tests.evaluation.outcomes import LABELS, random_outcome, said


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    outcome = random_outcome(150, seed)
    found = measure(outcome)
    expected, predicted = list(outcome.expected), list(outcome.predicted)
    values = {name: estimate.value for name, estimate in found.overall.items()}
    assert values["accuracy"] == pytest.approx(accuracy_score(expected, predicted))
    for average in ("macro", "weighted"):
        right = f1_score(expected, predicted, labels=LABELS, average=average)
        assert values[f"{average}_f1"] == pytest.approx(right)
    parts = precision_recall_fscore_support(expected, predicted, labels=LABELS)
    for i, label in enumerate(LABELS):
        own = found.per_label[label]
        shown = [own[part].value for part in ("precision", "recall", "f1")]
        assert shown == pytest.approx([parts[j][i] for j in range(3)])
    matrix = confusion_matrix(expected, predicted, labels=LABELS)
    assert [row[:3] for row in found.confusion] == matrix.tolist()
    assert all(row[3] == 0 for row in found.confusion)


def test_answers_without_a_label_are_wrong_and_counted_apart() -> None:
    outcome = said(
        "Negative.", "well", "positive", "positive",
        expected=("negative", "neutral", "positive", "neutral"),
        predicted=("negative", None, "positive", "positive"),
    )  # fmt: skip
    found = measure(outcome)
    assert found.overall["accuracy"].value == 0.5
    assert found.confusion == [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]]
    right = f1_score(outcome.expected, ["negative", "none", "positive", "positive"],
                     labels=LABELS, average="macro", zero_division=0)  # fmt: skip
    assert found.overall["macro_f1"].value == pytest.approx(right)
    assert "brier" not in found.overall
    assert found.reliability == []


def test_brier_and_calibration_error_follow_their_definitions() -> None:
    outcome = random_outcome(400, 3)
    found = measure(outcome)
    chances = np.array(outcome.probabilities)
    truth = np.array([[label == right for label in LABELS] for right in outcome.expected])
    assert found.overall["brier"].value == pytest.approx(((chances - truth) ** 2).sum(1).mean())
    error = 0.0
    for k in range(15):
        inside = (chances.max(1) > k / 15) & (chances.max(1) <= (k + 1) / 15)
        if inside.any():
            hits = np.array(outcome.hits)[inside]
            error += inside.mean() * abs(hits.mean() - chances.max(1)[inside].mean())
    assert found.overall["ece"].value == pytest.approx(error)
    assert sum(b.num_rows for b in found.reliability) == 400


def test_figures_for_json_are_plain() -> None:
    facts = measure(random_outcome(50, 0)).as_dict()
    assert facts["num_rows"] == 50
    assert facts["accuracy"].keys() == {"value", "low", "high"}
