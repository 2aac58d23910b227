"""Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599): one number that makes
probabilities as sure as they are right. The order of the labels stays. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finlora.evaluation.bootstrap import Array

MIN_ROWS = 200  # fewer say little of how sure one may be
LOWEST, HIGHEST = 0.05, 20.0  # rows that are all right would ask for 0
NUM_HALVINGS = 50
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the temperature is, and what it does to the mean negative log-likelihood."""

    temperature: float
    log_loss: float  # nats a row, of the probabilities as they were
    calibrated_log_loss: float
    num_rows: int

    def as_dict(self) -> dict[str, float]:
        """Rounded, for a manifest."""
        return {
            "temperature": self.temperature,
            "log_loss": round(self.log_loss, 4),
            "calibrated_log_loss": round(self.calibrated_log_loss, 4),
            "num_rows": self.num_rows,
        }


def calibrate(chances: Sequence[Sequence[float]], expected: Sequence[int]) -> Calibration | None:
    """Fit softmax(log p / T) to the right labels: chances [rows, labels], an index for each row.

    None when there are too few rows.
    """
    if len(expected) < MIN_ROWS:
        return None
    logprobs = np.log(np.maximum(np.asarray(chances), TINY))
    right = np.asarray(expected)
    temperature = round(_best_temperature(logprobs, right), 4)
    return Calibration(
        temperature=temperature,
        log_loss=_log_loss(logprobs, right),
        calibrated_log_loss=_log_loss(logprobs / temperature, right),
        num_rows=len(expected),
    )


def _best_temperature(logprobs: Array, right: Array) -> float:
    """The loss is convex in 1 / T, so its slope there changes sign once."""
    low, high = LOWEST, HIGHEST
    for _ in range(NUM_HALVINGS):
        middle = (low * high) ** 0.5
        if _slope(logprobs, right, 1 / middle) > 0:
            low = middle  # too sure
        else:
            high = middle
    return float((low * high) ** 0.5)


def _slope(logprobs: Array, right: Array, inverse: float) -> float:
    """Of the mean loss over 1 / T: what the log-probability is expected to be, less what it is."""
    expected = (_softmax(logprobs * inverse) * logprobs).sum(1)
    return float((expected - _of(logprobs, right)).mean())


def _log_loss(scores: Array, right: Array) -> float:
    return float(-np.log(_of(_softmax(scores), right)).mean())


def _softmax(scores: Array) -> Array:
    weights: Array = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights


def _of(rows: Array, columns: Array) -> Array:
    found: Array = rows[np.arange(len(rows)), columns]
    return found
