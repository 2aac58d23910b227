from collections.abc import Iterator, Sequence

import pytest

from finlora.datasets.rows import Message, Row
from finlora.evaluation import test_sets
from finlora.evaluation.answers import Mode, Question, Reply
from finlora.evaluation.runner import evaluate

LABELS = ("down", "up")
CHAT = (Message("system", "Be short."), Message("user", "Up or down?"))


class Asked:
    """Remembers the questions and always says the first label."""

    concurrency = 1

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        self.questions += questions
        yield from enumerate([Reply("", (0.9, 0.1), 1, 0, 0.1)] * len(questions))

    def describe(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize(("mode", "labels"), [(Mode.SCORE, LABELS), (Mode.GENERATE, ())])
def test_rows_are_asked_with_all_they_have(mode: Mode, labels: tuple[str, ...]) -> None:
    rows = (Row("Up?", "up"), Row("Be short.\nUp or down?", "down", CHAT))
    asked = Asked()
    (outcome,) = evaluate(asked, ["news"], [test_sets.TestSet("own", rows, LABELS)], mode)
    assert asked.questions == [
        Question("news", "Up?", labels),
        Question("news", "Be short.\nUp or down?", labels, CHAT),
    ]
    assert outcome.hits == [False, True]
