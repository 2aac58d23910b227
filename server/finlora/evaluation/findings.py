"""All that one evaluation found, as a report needs it. Knows no format but JSON."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from finlora import __version__
from finlora.evaluation.answers import Mode
from finlora.evaluation.bootstrap import NUM_RESAMPLES
from finlora.evaluation.comparison import Comparison, paired
from finlora.evaluation.measures import Measures, measure
from finlora.evaluation.outcome import Outcome
from finlora.evaluation.speed import Speed, speed
from finlora.evaluation.test_sets import TestSet


@dataclass(frozen=True, slots=True)
class Finding:
    """One model on one test set."""

    outcome: Outcome
    measures: Measures
    speed: Speed

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the rows."""
        facts = {"model": self.outcome.model, "test_set": self.outcome.test_set}
        contained = self.outcome.contained
        if contained is not None:
            facts |= {"contained": round(contained, 6)}  # type: ignore[dict-item]
        return {**facts, **self.measures.as_dict(), "speed": self.speed.as_dict()}


@dataclass(frozen=True, slots=True)
class Findings:
    """One evaluation."""

    subject: dict[str, str]  # what answered
    mode: Mode
    concurrency: int
    test_sets: tuple[TestSet, ...]
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]  # of every later model with the first
    created: str

    def of(self, test_set: TestSet) -> list[Finding]:
        """Findings on one test set."""
        return [found for found in self.findings if found.outcome.test_set == test_set.name]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the rows."""
        return {
            "finlora": __version__,
            "created": self.created,
            "subject": self.subject,
            "mode": str(self.mode),
            "concurrency": self.concurrency,
            "bootstrap_resamples": NUM_RESAMPLES,
            "test_sets": [
                {
                    "name": test_set.name,
                    "num_rows": len(test_set.rows),
                    "labels": list(test_set.labels),
                    "sha256": test_set.sha256,
                    "notes": list(test_set.notes),
                }
                for test_set in self.test_sets
            ],
            "results": [found.as_dict() for found in self.findings],
            "comparisons": [found.as_dict() for found in self.comparisons],
        }

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Every row of every outcome; the texts stay in the test set."""
        for found in self.findings:
            outcome = found.outcome
            rows = zip(outcome.expected, outcome.predicted, outcome.replies, strict=True)
            for index, (expected, predicted, reply) in enumerate(rows):
                yield {
                    "test_set": outcome.test_set,
                    "model": outcome.model,
                    "row": index,
                    "expected": expected,
                    "predicted": predicted,
                    "probabilities": [round(p, 6) for p in reply.probabilities],
                    "text": reply.text,
                }


def find(
    outcomes: Iterable[Outcome],
    *,
    subject: dict[str, str],
    mode: Mode,
    concurrency: int,
    test_sets: Sequence[TestSet],
    seed: int,
) -> Findings:
    """Measure outcomes, which come test set by test set, and compare the models of each."""
    known = list(outcomes)
    return Findings(
        subject=subject,
        mode=mode,
        concurrency=concurrency,
        test_sets=tuple(test_sets),
        findings=tuple(
            Finding(outcome, measure(outcome, seed=seed), speed(outcome, seed=seed))
            for outcome in known
        ),
        comparisons=tuple(_comparisons(known, seed)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _comparisons(outcomes: Sequence[Outcome], seed: int) -> Iterator[Comparison]:
    for _, group in groupby(outcomes, key=lambda outcome: outcome.test_set):
        first, *others = group
        yield from (paired(first, other, seed=seed) for other in others)
