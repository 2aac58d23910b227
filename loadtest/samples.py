"""What the clients of a test saw: every latency, exact, and every failure.

Locust's own statistics round what is above 100 ms; limits and pictures stand on these.
"""

import csv
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from finlora.bench.statistics import percentile

COLUMNS = ("at_seconds", "kind", "name", "milliseconds", "users")


class Kind(StrEnum):
    """What a latency is the latency of."""

    REQUEST = "request"  # from sending to the end of the answer
    FIRST_TOKEN = "first token"
    NEXT_TOKEN = "next token"  # since the token before it
    REFUSAL = "refusal"  # of a request that had to be refused, and was


ANSWERS = (Kind.REQUEST, Kind.REFUSAL)


@dataclass(slots=True)
class Series:
    """The good samples of one kind and name, in columns."""

    at_seconds: "array[float]" = field(default_factory=lambda: array("d"))
    milliseconds: "array[float]" = field(default_factory=lambda: array("d"))
    users: "array[int]" = field(default_factory=lambda: array("H"))

    def add(self, at_seconds: float, milliseconds: float, users: int) -> None:
        """One sample more."""
        self.at_seconds.append(at_seconds)
        self.milliseconds.append(milliseconds)
        self.users.append(users)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one kind and name. Latencies are those of good answers only; NaN without any."""

    kind: Kind
    name: str
    count: int
    errors: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Recorder:
    """Takes samples as they come; `at_seconds` counts from the beginning of the test."""

    def __init__(self) -> None:
        self._series: dict[tuple[Kind, str], Series] = {}
        self._failures: dict[tuple[Kind, str], Counter[str]] = {}
        self.last_at_seconds = 0.0
        self.num_requests = 0  # everything that was sent, also in vain

    def add(
        self,
        kind: Kind,
        name: str,
        *,
        at_seconds: float,
        milliseconds: float,
        users: int,
        error: str | None = None,
    ) -> None:
        """Note what came of something; with `error` it counts, but its latency does not."""
        key = kind, name
        series = self._series.setdefault(key, Series())
        self.last_at_seconds = max(self.last_at_seconds, at_seconds)
        self.num_requests += kind in ANSWERS
        if error is None:
            series.add(at_seconds, milliseconds, users)
        else:
            self._failures.setdefault(key, Counter())[error] += 1

    def errors(self) -> Counter[str]:
        """How often each failure happened."""
        return sum(self._failures.values(), Counter())

    def pooled(self, kind: Kind) -> list[float]:
        """Milliseconds of all good samples of a kind, whatever their names."""
        chosen = (s.milliseconds for (k, _), s in self._series.items() if k is kind)
        return [value for values in chosen for value in values]

    def rows(self) -> list[Row]:
        """One for each kind and name, in the order of kinds, then names."""
        order = {kind: place for place, kind in enumerate(Kind)}
        keys = sorted(self._series, key=lambda key: (order[key[0]], key[1]))
        return [self._row(*key) for key in keys]

    def write_csv(self, file: Path) -> None:
        """Every good sample with its time and the number of users."""
        with file.open("w", newline="", encoding="utf-8") as output:
            writer = csv.writer(output)
            writer.writerow(COLUMNS)
            writer.writerows(self._samples())

    def _samples(self) -> Iterator[tuple[str, ...]]:
        for (kind, name), series in self._series.items():
            columns = zip(series.at_seconds, series.milliseconds, series.users, strict=True)
            for at, milliseconds, users in columns:
                yield f"{at:.4f}", kind, name, f"{milliseconds:.3f}", str(users)

    def _row(self, kind: Kind, name: str) -> Row:
        values = self._series[kind, name].milliseconds
        errors = self._failures.get((kind, name), Counter()).total()
        return Row(
            kind=kind,
            name=name,
            count=len(values) + errors,
            errors=errors,
            per_second=len(values) / self.last_at_seconds if self.last_at_seconds else 0.0,
            p50_ms=percentile(values, 0.5),
            p95_ms=percentile(values, 0.95),
            p99_ms=percentile(values, 0.99),
            max_ms=percentile(values, 1.0),
        )
