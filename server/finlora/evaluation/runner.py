"""Asks every model about every row, and keeps what they said."""

import time
from collections.abc import Callable, Iterator, Sequence

from finlora.evaluation.answers import Answerer, Mode, Question, Reply
from finlora.evaluation.outcome import Outcome
from finlora.evaluation.test_sets import TestSet

Advance = Callable[[str], None]  # told of every row that is done, with what it belongs to


def evaluate(
    answerer: Answerer,
    models: Sequence[str],
    test_sets: Sequence[TestSet],
    mode: Mode,
    *,
    advance: Advance = lambda _: None,
) -> Iterator[Outcome]:
    """One outcome for each test set and model, in that order. Raises FinLoRAError."""
    for test_set in test_sets:
        for model in models:
            yield _evaluate(answerer, model, test_set, mode, advance)


def _evaluate(
    answerer: Answerer, model: str, test_set: TestSet, mode: Mode, advance: Advance
) -> Outcome:
    labels = test_set.labels if mode is Mode.SCORE else ()
    questions = [Question(model, row.context, labels, row.messages) for row in test_set.rows]
    replies: dict[int, Reply] = {}
    started = time.perf_counter()
    for index, reply in answerer.ask(questions):
        replies[index] = reply
        advance(f"{model} on {test_set.name}")
    seconds = time.perf_counter() - started
    return Outcome.of(model, test_set, [replies[i] for i in range(len(questions))], seconds)
