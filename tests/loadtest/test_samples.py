import csv
import math
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.samples import Kind, Recorder


def add(recorder: Recorder, milliseconds: float, error: str | None = None, at: float = 1.0) -> None:
    recorder.add(
        Kind.REQUEST, "completions", at_seconds=at, milliseconds=milliseconds, users=2, error=error
    )


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_percentiles_are_exact(values: list[float]) -> None:
    recorder = Recorder()
    for value in values:
        add(recorder, value)
    (row,) = recorder.rows()
    shares = (50, 95, 99, 100)
    exact = [np.percentile(values, share, method="inverted_cdf") for share in shares]
    assert [row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms] == exact


def test_failures_count_and_their_latency_does_not() -> None:
    recorder = Recorder()
    for _ in range(3):
        add(recorder, 10.0)
    add(recorder, 0.1, error="503 overloaded", at=2.0)
    (row,) = recorder.rows()
    assert (row.count, row.errors, row.p50_ms) == (4, 1, 10.0)
    assert row.per_second == 1.5
    assert recorder.errors() == {"503 overloaded": 1}
    assert recorder.num_requests == 4


def test_what_only_fails_has_no_latency() -> None:
    recorder = Recorder()
    add(recorder, 5.0, error="OSError")
    (row,) = recorder.rows()
    assert math.isnan(row.p95_ms)
    assert row.per_second == 0


def test_tokens_are_not_requests(tmp_path: Path) -> None:
    recorder = Recorder()
    add(recorder, 30.0)
    for kind, milliseconds in ((Kind.NEXT_TOKEN, 5.0), (Kind.FIRST_TOKEN, 20.0)):
        recorder.add(kind, "completions", at_seconds=0.5, milliseconds=milliseconds, users=1)
    assert recorder.num_requests == 1
    assert [row.kind for row in recorder.rows()] == [
        Kind.REQUEST,
        Kind.FIRST_TOKEN,
        Kind.NEXT_TOKEN,
    ]
    recorder.write_csv(tmp_path / "samples.csv")
    rows = list(csv.DictReader((tmp_path / "samples.csv").read_text().splitlines()))
    assert [(row["kind"], float(row["milliseconds"]), row["users"]) for row in rows] == [
        ("request", 30.0, "2"),
        ("next token", 5.0, "1"),
        ("first token", 20.0, "1"),
    ]
