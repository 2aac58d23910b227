"""Training rows: without duplicates, split by a hash of the text, counted by label."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from finlora.errors import ConfigError

FINLORA_INPUT = re.compile(r"Input: (?P<text>.*)\nAnswer:\s*\Z", re.DOTALL)
MAX_LABELS = 32


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its answer, as FinLoRA writes them."""

    context: str
    target: str
    messages: tuple[Message, ...] = ()  # of a chat: what the base's template makes the prompt of

    @property
    def text(self) -> str:
        """What the row is about: without the instruction around it, case and spacing."""
        found = FINLORA_INPUT.search(self.context)
        return _normalised(found["text"] if found else self.context)

    @property
    def question(self) -> str:
        """The whole context without case and spacing: one text may be asked several things."""
        return _normalised(self.context)


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to judge by; no text is in both."""

    train: list[Row]
    valid: list[Row]
    num_duplicates: int
    num_contradictions: int = 0  # questions with several answers; the first counts

    def label_counts(self, labels: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Rows to train on and to validate with, of each label."""
        train, valid = (Counter(row.target for row in side) for side in (self.train, self.valid))
        return {label: (train[label], valid[label]) for label in labels}


def split_rows(rows: list[Row], valid_fraction: float) -> Split:
    """Split by text alone, so that a text stays on its side when rows are added or reordered."""
    unique = _unique(rows)
    held_out = [row for row in unique if position(row) < valid_fraction]
    train = [row for row in unique if position(row) >= valid_fraction]
    return Split(train, held_out, len(rows) - len(unique), _num_contradictions(rows))


def split_given(train: list[Row], valid: list[Row]) -> Split:
    """A split somebody else made; texts of the validation rows are taken out of the others."""
    valid_rows = _unique(valid)
    held_out = {row.text for row in valid_rows}
    kept = [row for row in _unique(train) if row.text not in held_out]
    num_duplicates = len(train) + len(valid) - len(kept) - len(valid_rows)
    return Split(kept, valid_rows, num_duplicates, _num_contradictions([*train, *valid]))


def position(row: Row) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int(hashlib.sha256(row.text.encode()).hexdigest()[:13], 16) / 16**13


def first_rows(rows: list[Row], max_rows: int) -> list[Row]:
    """A sample that depends on the contexts alone, not on their order."""
    return sorted(rows, key=lambda row: (position(row), row.context), reverse=True)[:max_rows]


def find_labels(rows: list[Row], names: Iterable[str] | None) -> list[str]:
    """The answers to choose from; empty when the task is not a choice.

    Raises ConfigError for a target outside the given names, or when there is nothing to choose.
    """
    counts = Counter(row.target for row in rows)
    if names is not None:
        labels = list(names)
        if unknown := sorted(counts.keys() - set(labels)):
            raise ConfigError(f"target {unknown[0]!r} is none of the labels {', '.join(labels)}")
    elif len(counts) <= MAX_LABELS and len(counts) * 4 <= max(len(rows), 8):
        labels = sorted(counts)
    else:
        return []
    if len(counts) < 2:
        raise ConfigError(f"every row has the target {next(iter(counts))!r}: nothing to learn")
    return labels


def _unique(rows: list[Row]) -> list[Row]:
    """The first row of each question."""
    return list({row.question: row for row in reversed(rows)}.values())[::-1]


def _num_contradictions(rows: list[Row]) -> int:
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row.question, set()).add(row.target)
    return sum(len(found) > 1 for found in answers.values())


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
