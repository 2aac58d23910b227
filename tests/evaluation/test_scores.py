import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from finlora.evaluation.scores import score

LABELS = ("negative", "neutral", "positive")
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1)


@given(PAIRS)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    expected, predicted = (list(side) for side in zip(*pairs, strict=True))
    ours = score(LABELS, expected, predicted)
    precision, recall, f1, num_rows = precision_recall_fscore_support(
        expected, predicted, labels=LABELS, zero_division=0
    )
    assert ours.accuracy == pytest.approx(accuracy_score(expected, predicted))
    assert ours.macro_f1 == pytest.approx(f1.mean())
    for i, label in enumerate(LABELS):
        found = ours.per_label[label]
        assert (found.precision, found.recall, found.f1) == pytest.approx(
            (precision[i], recall[i], f1[i])
        )
        assert found.num_rows == num_rows[i]


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="nothing"):
        score(LABELS, [], [])


def test_a_manifest_gets_rounded_figures() -> None:
    figures = score(LABELS, ["neutral"] * 3, ["neutral", "neutral", "positive"]).as_dict()
    assert figures["accuracy"] == 0.6667
    assert figures["per_label"]["neutral"]["num_rows"] == 3
