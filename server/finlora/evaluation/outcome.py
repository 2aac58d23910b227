"""How one model did on one test set, row by row."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finlora.evaluation.answers import Reply
from finlora.evaluation.test_sets import TestSet


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rows in the order of the test set."""

    model: str
    test_set: str
    labels: tuple[str, ...]
    expected: tuple[str, ...]
    predicted: tuple[str | None, ...]  # None: the answer named no label
    replies: tuple[Reply, ...]
    seconds: float  # wall time of all rows

    @classmethod
    def of(
        cls, model: str, test_set: TestSet, replies: Sequence[Reply], seconds: float
    ) -> "Outcome":
        """What the replies, one for each row, say of the test set."""
        return cls(
            model=model,
            test_set=test_set.name,
            labels=test_set.labels,
            expected=tuple(row.target for row in test_set.rows),
            predicted=tuple(choose(reply, test_set.labels) for reply in replies),
            replies=tuple(replies),
            seconds=seconds,
        )

    @property
    def hits(self) -> list[bool]:
        """Which rows are right."""
        return [a == b for a, b in zip(self.expected, self.predicted, strict=True)]

    @property
    def probabilities(self) -> list[tuple[float, ...]] | None:
        """Of every label in every row; None when text was generated."""
        found = [reply.probabilities for reply in self.replies]
        return found if all(found) else None

    @property
    def contained(self) -> float | None:
        """FinLoRA's own accuracy: the right label stands somewhere in the generated text."""
        if self.probabilities is not None:
            return None
        pairs = zip(self.expected, self.replies, strict=True)
        return sum(e.lower() in r.text.lower() for e, r in pairs) / len(self.expected)


def choose(reply: Reply, labels: Sequence[str]) -> str | None:
    """The likeliest label, or the first one in the text."""
    if reply.probabilities:
        return max(zip(reply.probabilities, labels, strict=True), key=lambda pair: pair[0])[1]
    return first_label(reply.text, labels)


def first_label(text: str, labels: Sequence[str]) -> str | None:
    """The label whose words come first, in any case; of two at one place the longer one."""
    longest_first = sorted(labels, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(label)}(?!\w)" for label in longest_first)
    found = re.search(pattern, text, re.IGNORECASE)
    if found is None:
        return None
    return next(label for label in labels if label.lower() == found[0].lower())
