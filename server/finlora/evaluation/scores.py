"""Scores of predicted against expected labels. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How well one label was found."""

    precision: float
    recall: float
    f1: float
    num_rows: int  # that have this label


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy, and the mean of the labels' F1, every label weighing the same."""

    accuracy: float
    macro_f1: float
    num_rows: int
    per_label: dict[str, LabelScore]

    def as_dict(self) -> dict[str, Any]:
        """Rounded, for a manifest."""
        return {
            "accuracy": round(self.accuracy, 4),
            "macro_f1": round(self.macro_f1, 4),
            "num_rows": self.num_rows,
            "per_label": {
                label: {
                    "precision": round(score.precision, 4),
                    "recall": round(score.recall, 4),
                    "f1": round(score.f1, 4),
                    "num_rows": score.num_rows,
                }
                for label, score in self.per_label.items()
            },
        }


def score(labels: Sequence[str], expected: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Scores of predictions. A label that neither side has counts with F1 0, as in scikit-learn."""
    pairs = list(zip(expected, predicted, strict=True))
    if not pairs:
        raise ValueError("nothing to score")
    per_label = {label: _score_label(label, pairs) for label in labels}
    return Scores(
        accuracy=sum(right == guess for right, guess in pairs) / len(pairs),
        macro_f1=sum(found.f1 for found in per_label.values()) / len(labels),
        num_rows=len(pairs),
        per_label=per_label,
    )


def _score_label(label: str, pairs: Sequence[tuple[str, str]]) -> LabelScore:
    hits = sum(right == guess == label for right, guess in pairs)
    num_expected = sum(right == label for right, _ in pairs)
    num_predicted = sum(guess == label for _, guess in pairs)
    return LabelScore(
        precision=hits / num_predicted if num_predicted else 0.0,
        recall=hits / num_expected if num_expected else 0.0,
        f1=2 * hits / (num_expected + num_predicted) if num_expected + num_predicted else 0.0,
        num_rows=num_expected,
    )
