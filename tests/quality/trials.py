"""Trials without a model: who is right is drawn."""

import numpy as np

from finlora.config import Quantization
from finlora.evaluation.answers import Reply
from finlora.evaluation.outcome import Outcome
from finlora.quality.arms import ARMS, Trial
from finlora.quality.experiment import Measured
from finlora.quality.results import Subject

LABELS = ("no", "yes")


def trial(name: str, seed: int | None, hits: dict[str, list[bool]]) -> Measured:
    """One arm and seed that is right on these rows of these sets."""
    arm = next(arm for arm in ARMS if arm.name == name)
    subject = Subject("f" * 64, Quantization.NF4, None)
    outcomes = {found: _outcome(name, found, rows) for found, rows in hits.items()}
    return Measured(Trial(arm, seed), subject, outcomes)


def drawn(num_rows: int, accuracy: float, seed: int) -> list[bool]:
    """Right answers at random."""
    hits: list[bool] = (np.random.default_rng(seed).random(num_rows) < accuracy).tolist()
    return hits


def _outcome(model: str, test_set: str, hits: list[bool]) -> Outcome:
    expected = tuple(LABELS[i % 2] for i in range(len(hits)))
    predicted = tuple(LABELS[(i + (not hit)) % 2] for i, hit in enumerate(hits))
    replies = tuple(Reply("", (0.5, 0.5), 1, 0, 0.1) for _ in hits)
    return Outcome(model, test_set, LABELS, expected, predicted, replies, 1.0)
