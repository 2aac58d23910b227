"""What a test has to hold for its exit code to be 0."""

from dataclasses import dataclass

from finlora.bench.statistics import percentile
from loadtest.samples import ANSWERS, Kind, Recorder


@dataclass(frozen=True, slots=True)
class Limits:
    """None: not limited. Latencies are pooled over all names of their kind."""

    first_token_p95_ms: float | None = None
    request_p95_ms: float | None = None
    max_error_share: float | None = 0.0
    min_requests_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """The figures that limits are held against; None: nothing of the kind was measured."""

    requests: int
    errors: int
    requests_per_second: float  # good answers, from the beginning to the last of them
    first_token_p95_ms: float | None
    request_p95_ms: float | None

    @property
    def error_share(self) -> float:
        """Of everything that was sent; a right refusal is no error."""
        return self.errors / self.requests if self.requests else 1.0


def totals(recorder: Recorder) -> Totals:
    """The figures of a whole test."""
    rows = [row for row in recorder.rows() if row.kind in ANSWERS]
    errors = sum(row.errors for row in rows)
    count = sum(row.count for row in rows)
    seconds = recorder.last_at_seconds
    return Totals(
        requests=count,
        errors=errors,
        requests_per_second=(count - errors) / seconds if seconds else 0.0,
        first_token_p95_ms=_p95(recorder, Kind.FIRST_TOKEN),
        request_p95_ms=_p95(recorder, Kind.REQUEST),
    )


def missed(limits: Limits, seen: Totals) -> list[str]:
    """A line for each limit that was not held; a latency that was not measured misses its limit."""
    lines = [
        _above("p95 to the first token", seen.first_token_p95_ms, limits.first_token_p95_ms),
        _above("p95 of whole requests", seen.request_p95_ms, limits.request_p95_ms),
    ]
    if limits.max_error_share is not None and seen.error_share > limits.max_error_share:
        lines.append(
            f"{seen.error_share:.2%} of the requests failed ({seen.errors} of {seen.requests}), "
            f"at most {limits.max_error_share:.2%} were allowed"
        )
    least = limits.min_requests_per_second
    if least is not None and seen.requests_per_second < least:
        lines.append(f"{seen.requests_per_second:.2f} requests/s, at least {least:g} were wanted")
    return [line for line in lines if line]


def _above(what: str, value: float | None, limit: float | None) -> str:
    if limit is None:
        return ""
    if value is None:
        return f"{what} was not measured, at most {limit:g} ms were allowed"
    return f"{what} was {value:.1f} ms, at most {limit:g} ms were allowed" if value > limit else ""


def _p95(recorder: Recorder, kind: Kind) -> float | None:
    values = recorder.pooled(kind)
    return percentile(values, 0.95) if values else None
