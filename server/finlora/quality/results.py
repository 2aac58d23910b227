"""What was measured, kept in files named by all that decides it: a stopped experiment goes on."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finlora.adapters.adapter import Adapter
from finlora.config import Quantization
from finlora.evaluation.answers import Reply
from finlora.evaluation.outcome import Outcome
from finlora.evaluation.test_sets import TestSet

FORMAT_VERSION = 1
KEY_LENGTH = 20


@dataclass(frozen=True, slots=True)
class Subject:
    """What answers: a base as it is stored, and an adapter on it or inside it."""

    base_fingerprint: str
    served_on: Quantization
    adapter: Adapter | None
    is_merged: bool = False

    def key(self, what: str) -> str:
        """Of one thing measured."""
        digest = None if self.adapter is None else self.adapter.digest
        facts = [FORMAT_VERSION, self.base_fingerprint, self.served_on, digest, self.is_merged]
        text = json.dumps([*facts, what])
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class ResultStore:
    """A folder of JSON files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def outcome(self, name: str, subject: Subject, test_set: TestSet) -> Outcome | None:
        """What this subject said of the test set; None when it was not asked yet."""
        found = self.facts(subject, test_set.sha256)
        if found is None:
            return None
        replies = [Reply("", tuple(row), 0, 0, 0.0) for row in found["probabilities"]]
        return Outcome.of(name, test_set, replies, found["seconds"])

    def keep(self, outcome: Outcome, subject: Subject, test_set: TestSet) -> None:
        """Remember an outcome whose labels were scored."""
        self.keep_facts(
            subject,
            test_set.sha256,
            {
                "model": outcome.model,
                "test_set": outcome.test_set,
                "served_on": str(subject.served_on),
                "seconds": round(outcome.seconds, 2),
                "probabilities": [list(row) for row in outcome.probabilities or ()],
            },
        )

    def facts(self, subject: Subject, what: str) -> dict[str, Any] | None:
        """Anything else that was kept of the subject."""
        file = self._file(subject, what)
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_bytes())
        return found

    def keep_facts(self, subject: Subject, what: str, facts: dict[str, Any]) -> None:
        """Whole or not at all."""
        file = self._file(subject, what)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        aside.write_text(json.dumps(facts) + "\n", "utf-8")
        os.replace(aside, file)

    def _file(self, subject: Subject, what: str) -> Path:
        return self._folder / f"{subject.key(what)}.json"


def missing(
    store: ResultStore, subject: Subject, test_sets: Sequence[TestSet]
) -> Iterator[TestSet]:
    """Test sets that the subject still has to answer."""
    return (s for s in test_sets if store.facts(subject, s.sha256) is None)
