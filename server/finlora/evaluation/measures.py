"""Numbers of one outcome, each with its interval. Pure arithmetic.

Rows become columns whose sums say everything: the cell of the confusion matrix that a row is in,
its Brier score, and how far its confidence is from its being right, by bin of confidence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from finlora.evaluation.bootstrap import Array, Estimate, Statistic, estimates
from finlora.evaluation.outcome import Outcome

NUM_BINS = 15  # of confidence, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599
PARTS = ("precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of like confidence."""

    confidence: float
    accuracy: float
    num_rows: int


@dataclass(frozen=True, slots=True)
class Measures:
    """How good the answers are."""

    num_rows: int
    overall: dict[str, Estimate]  # accuracy, macro_f1, weighted_f1; brier, ece where scored
    per_label: dict[str, dict[str, Estimate]]  # precision, recall, f1
    confusion: list[list[int]]  # [right label][answered label; last: none of them]
    reliability: list[Bin]  # empty where text was generated

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_rows": self.num_rows,
            **{name: found.as_dict() for name, found in self.overall.items()},
            "per_label": {
                label: {part: found.as_dict() for part, found in parts.items()}
                for label, parts in self.per_label.items()
            },
            "confusion": self.confusion,
        }


def measure(outcome: Outcome, *, seed: int = 0) -> Measures:
    """All numbers of an outcome."""
    size = len(outcome.labels)
    cells = cell_columns(outcome)
    found = estimates(cells, confusion_statistics(size), seed=seed)
    overall = {name: value for name, value in found.items() if "/" not in name}
    if outcome.probabilities is not None:
        columns = np.column_stack([_brier(outcome), _gaps(outcome)])
        overall |= estimates(columns, _calibration_statistics(len(columns)), seed=seed)
    return Measures(
        num_rows=len(outcome.expected),
        overall=overall,
        per_label={
            label: {part: found[f"{part}/{i}"] for part in PARTS}
            for i, label in enumerate(outcome.labels)
        },
        confusion=cells.sum(0).reshape(size, size + 1).astype(int).tolist(),
        reliability=[] if outcome.probabilities is None else _reliability(outcome),
    )


def cell_columns(outcome: Outcome) -> Array:
    """[num_rows, labels * (labels + 1)]: 1 in the row's cell of the confusion matrix."""
    index = {label: i for i, label in enumerate(outcome.labels)}
    width = len(index) + 1
    pairs = zip(outcome.expected, outcome.predicted, strict=True)
    cells = [
        index[right] * width + (width - 1 if said is None else index[said]) for right, said in pairs
    ]
    return np.eye(len(index) * width)[cells]


def confusion_statistics(num_labels: int) -> dict[str, Statistic]:
    """Accuracy and F1, overall and by label (`f1/0`), of the sums of such columns."""
    statistics: dict[str, Statistic] = {
        "accuracy": partial(_accuracy, num_labels),
        "macro_f1": partial(_macro_f1, num_labels),
        "weighted_f1": partial(_weighted_f1, num_labels),
    }
    parts: dict[str, Callable[[Array], Array]] = {
        "precision": _precision, "recall": _recall, "f1": _f1,
    }  # fmt: skip
    for i in range(num_labels):
        for name, part in parts.items():
            statistics[f"{name}/{i}"] = partial(_of_label, part, num_labels, i)
    return statistics


def _matrix(num_labels: int, sums: Array) -> Array:
    """[..., right label, answered label or none]."""
    return sums.reshape(*sums.shape[:-1], num_labels, num_labels + 1)


def _accuracy(num_labels: int, sums: Array) -> Array:
    matrix = _matrix(num_labels, sums)
    share: Array = _hits(matrix).sum(-1) / matrix.sum((-2, -1))
    return share


def _macro_f1(num_labels: int, sums: Array) -> Array:
    mean: Array = _f1(_matrix(num_labels, sums)).mean(-1)
    return mean


def _weighted_f1(num_labels: int, sums: Array) -> Array:
    matrix = _matrix(num_labels, sums)
    rows = matrix.sum(-1)
    weighted: Array = (_f1(matrix) * rows).sum(-1) / rows.sum(-1)
    return weighted


def _of_label(part: Callable[[Array], Array], num_labels: int, label: int, sums: Array) -> Array:
    return part(_matrix(num_labels, sums))[..., label]


def _hits(matrix: Array) -> Array:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _precision(matrix: Array) -> Array:
    return _share(_hits(matrix), matrix.sum(-2)[..., :-1])


def _recall(matrix: Array) -> Array:
    return _share(_hits(matrix), matrix.sum(-1))


def _f1(matrix: Array) -> Array:
    return _share(2 * _hits(matrix), matrix.sum(-1) + matrix.sum(-2)[..., :-1])


def _share(part: Array, whole: Array) -> Array:
    """0 where there is nothing, as scikit-learn has it with zero_division=0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _probabilities(outcome: Outcome) -> Array:
    return np.asarray(outcome.probabilities, dtype=np.float64)


def _brier(outcome: Outcome) -> Array:
    """Squared distance of the probabilities from the truth, over all labels: from 0 to 2."""
    truth = np.eye(len(outcome.labels))[[outcome.labels.index(e) for e in outcome.expected]]
    squares: Array = np.square(_probabilities(outcome) - truth).sum(1)
    return squares


def _bins(outcome: Outcome) -> tuple[Array, Array, Array]:
    """[num_rows, NUM_BINS] membership, and the confidence and hit of every row."""
    confidence = _probabilities(outcome).max(1)
    index = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return np.eye(NUM_BINS)[index], confidence, np.asarray(outcome.hits, dtype=np.float64)


def _gaps(outcome: Outcome) -> Array:
    members, confidence, hits = _bins(outcome)
    return members * (confidence - hits)[:, None]


def _calibration_statistics(num_rows: int) -> dict[str, Statistic]:
    """A resample has as many rows as the set."""
    return {
        "brier": lambda sums: sums[..., 0] / num_rows,
        "ece": lambda sums: np.abs(sums[..., 1:]).sum(-1) / num_rows,
    }


def _reliability(outcome: Outcome) -> list[Bin]:
    members, confidence, hits = _bins(outcome)
    counts = members.sum(0)
    return [
        Bin(float((members[:, i] @ confidence) / n), float((members[:, i] @ hits) / n), int(n))
        for i, n in enumerate(counts)
        if n
    ]
