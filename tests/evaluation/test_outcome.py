import pytest

from finlora.evaluation.answers import Reply
from finlora.evaluation.outcome import choose, first_label
from tests.evaluation.outcomes import LABELS, said

STRENGTHS = ("strong negative", "mildly negative", "neutral", "moderately positive")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (" Neutral.\nInput: positive", "neutral"),
        ("not POSITIVE but negative", "positive"),
        ("the sentiment", None),
        ("", None),
        ("positively", None),
    ],
)
def test_the_first_whole_word_counts(text: str, label: str | None) -> None:
    assert first_label(text, LABELS) == label


def test_labels_of_several_words() -> None:
    assert first_label("a mildly negative one", STRENGTHS) == "mildly negative"
    assert first_label("negative", STRENGTHS) is None
    assert first_label("very positive", ("positive", "very positive")) == "very positive"


def test_the_likeliest_label_is_chosen() -> None:
    assert choose(Reply("", (0.2, 0.5, 0.3), 1, 0, 0.1), LABELS) == "neutral"


def test_finlora_counts_a_label_anywhere_in_the_text() -> None:
    outcome = said(
        "neutral, no: positive", "Negatively", "x",
        expected=("positive", "negative", "neutral"),
        predicted=("neutral", None, None),
    )  # fmt: skip
    assert outcome.contained == pytest.approx(2 / 3)
    assert outcome.hits == [False, False, False]
