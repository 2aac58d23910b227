"""Two models on the same rows: is one better, and by how much at least. Pure arithmetic."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from finlora.evaluation.bootstrap import Array, Estimate, Statistic, estimates
from finlora.evaluation.measures import cell_columns, confusion_statistics
from finlora.evaluation.outcome import Outcome
from finlora.evaluation.paired_test import PairedTest, compare

COMPARED = ("accuracy", "macro_f1")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second model minus the first."""

    test_set: str
    first: str
    second: str
    differences: dict[str, Estimate]  # of accuracy and macro F1
    test: PairedTest  # McNemar's
    agreement: float  # share of rows with the same answer, right or wrong

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "test_set": self.test_set,
            "first": self.first,
            "second": self.second,
            **{name: found.as_dict() for name, found in self.differences.items()},
            "only_second_right": self.test.num_gained,
            "only_first_right": self.test.num_lost,
            "mcnemar_p": round(self.test.p_value, 6),
            "agreement": round(self.agreement, 6),
        }


def paired(first: Outcome, second: Outcome, *, seed: int = 0) -> Comparison:
    """Compare two outcomes on the same test set; rows are resampled in pairs."""
    columns = np.concatenate([cell_columns(first), cell_columns(second)], axis=1)
    statistics = confusion_statistics(len(first.labels))
    width = columns.shape[1] // 2
    differences: dict[str, Statistic] = {
        name: partial(_difference, statistics[name], width) for name in COMPARED
    }
    same = [a == b for a, b in zip(first.predicted, second.predicted, strict=True)]
    return Comparison(
        first.test_set,
        first.model,
        second.model,
        estimates(columns, differences, seed=seed),
        compare(second.hits, first.hits),
        sum(same) / len(same),
    )


def _difference(statistic: Statistic, width: int, sums: Array) -> Array:
    return statistic(sums[..., width:]) - statistic(sums[..., :width])
