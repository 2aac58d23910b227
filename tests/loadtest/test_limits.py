import pytest

from loadtest.limits import Limits, missed, totals
from loadtest.samples import Kind, Recorder

ALL = Limits(
    first_token_p95_ms=100, request_p95_ms=200, max_error_share=0.1, min_requests_per_second=9
)


def recorder(*, errors: int = 0, first_token: bool = True) -> Recorder:
    """100 requests in 10 s: first tokens up to 100 ms, whole requests up to 200 ms."""
    made = Recorder()
    for index in range(1, 101):
        error = "500 internal_error" if index <= errors else None
        at = index / 10
        made.add(Kind.REQUEST, "x", at_seconds=at, milliseconds=2 * index, users=1, error=error)
        if first_token:
            made.add(Kind.FIRST_TOKEN, "x", at_seconds=at, milliseconds=index, users=1)
    return made


def test_limits_that_are_held_say_nothing() -> None:
    assert missed(ALL, totals(recorder())) == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(first_token_p95_ms=94), "p95 to the first token was 95.0 ms, at most 94 ms"),
        (Limits(request_p95_ms=189.5), "p95 of whole requests was 190.0 ms, at most 189.5 ms"),
        (Limits(min_requests_per_second=11), "10.00 requests/s, at least 11 were wanted"),
    ],
)
def test_each_missed_limit_is_named_with_what_was_measured(limits: Limits, words: str) -> None:
    (line,) = missed(limits, totals(recorder()))
    assert words in line


def test_one_failure_is_too_many_unless_a_share_is_allowed() -> None:
    seen = totals(recorder(errors=5))
    (line,) = missed(Limits(), seen)
    assert "5.00% of the requests failed (5 of 100)" in line
    assert missed(Limits(max_error_share=0.05), seen) == []
    assert missed(Limits(max_error_share=None), seen) == []
    assert seen.requests_per_second == pytest.approx(9.5)


def test_a_limit_on_what_was_not_measured_is_missed() -> None:
    (line,) = missed(Limits(first_token_p95_ms=1e9), totals(recorder(first_token=False)))
    assert "first token was not measured" in line


def test_a_test_in_which_nothing_was_sent_has_failed() -> None:
    assert len(missed(ALL, totals(Recorder()))) == 4


def test_a_right_refusal_is_a_success() -> None:
    made = Recorder()
    made.add(Kind.REFUSAL, "unknown adapter", at_seconds=1, milliseconds=3, users=1)
    seen = totals(made)
    assert (seen.requests, seen.errors, seen.request_p95_ms) == (1, 0, None)
    assert missed(Limits(), seen) == []
