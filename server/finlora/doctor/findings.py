"""What a check finds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # works, but could be better or may surprise
    PROBLEM = "problem"  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    subject: str
    text: str
    next_step: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # for programs


def ok(subject: str, text: str, **facts: Any) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, subject, text, facts=facts)


def note(subject: str, text: str, next_step: str | None = None, **facts: Any) -> Finding:
    """Works, but could be better or may surprise."""
    return Finding(Level.NOTE, subject, text, next_step, facts)


def problem(subject: str, text: str, next_step: str, **facts: Any) -> Finding:
    """Does not work."""
    return Finding(Level.PROBLEM, subject, text, next_step, facts)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """The report for people."""
    for finding in findings:
        yield f"{finding.level:8} {finding.subject:10} {finding.text}"
        if finding.next_step is not None:
            yield f"{'':8} {'':10} -> {finding.next_step}"
