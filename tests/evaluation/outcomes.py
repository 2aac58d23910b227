"""Outcomes without a model: right labels, answers, and probabilities that fit them."""

import numpy as np

from finlora.evaluation.answers import Reply
from finlora.evaluation.outcome import Outcome

LABELS = ("negative", "neutral", "positive")


def random_outcome(num_rows: int, seed: int, model: str = "m", *, skill: float = 2.0) -> Outcome:
    """Answers that are right more often, the greater the skill; the same rows for every seed."""
    right = np.random.default_rng(0).choice(3, size=num_rows, p=[0.2, 0.5, 0.3])
    logits = np.random.default_rng(seed).normal(size=(num_rows, 3)) + skill * np.eye(3)[right]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    replies = tuple(Reply("", tuple(row), 10, 0, 0.5) for row in chances.tolist())
    predicted = tuple(LABELS[i] for i in chances.argmax(1))
    expected = tuple(LABELS[i] for i in right)
    return Outcome(model, "set", LABELS, expected, predicted, replies, 2.0)


def said(*texts: str, expected: tuple[str, ...], predicted: tuple[str | None, ...]) -> Outcome:
    """What generation gave."""
    replies = tuple(Reply(text, (), 10, 3, 0.5) for text in texts)
    return Outcome("m", "set", LABELS, expected, predicted, replies, 2.0)
