import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.stream_times import Moment, StreamTimes


def completion(text: str = "", finish: str | None = None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": finish}]}).encode()


def chat(finish: str | None = None, **delta: Any) -> bytes:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode()


def run(events: list[tuple[float, bytes]], begin: float = 10.0) -> StreamTimes:
    times = StreamTimes(begin)
    for now, event in events:
        times.event(event, now)
    return times


def test_a_completion_is_timed_token_by_token() -> None:
    times = StreamTimes(10.0)
    assert times.event(completion("a"), 10.5) == (Moment.FIRST_TOKEN, 0.5)
    assert times.event(completion("b"), 10.75) == (Moment.NEXT_TOKEN, 0.25)
    assert times.event(completion("", "length"), 10.76) is None
    assert times.event(b'{"choices": [], "usage": {}}', 10.8) is None
    assert times.error == "the stream ended early"
    assert times.event(b"[DONE]", 10.9) is None
    assert times.error is None


def test_a_role_is_no_token() -> None:
    head = chat(role="assistant", content="")
    times = run([(11, head), (12, chat(content="Up")), (14, chat("stop")), (14, b"[DONE]")])
    assert times.first_token_seconds == 2
    assert times.gaps == []
    assert times.error is None


def test_an_answer_without_any_text_has_its_first_token_where_it_ends() -> None:
    times = run([(13, completion("", "stop")), (13, b"[DONE]")])
    assert (times.first_token_seconds, times.gaps, times.error) == (3, [], None)


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_first_token_and_gaps_add_up_to_the_last_token(gaps: list[float]) -> None:
    clock, events = 10.0, []
    for gap in gaps:
        clock += gap
        events.append((clock, completion("x")))
    times = run(events)
    assert times.first_token_seconds is not None
    assert times.first_token_seconds + sum(times.gaps) == pytest.approx(clock - 10.0)
    assert len(times.gaps) == len(gaps) - 1


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (b'{"error": {"code": "adapter_load_failed", "type": "server_error"}}', "adapter_load"),
        (b'{"error": {"type": "server_error"}}', "server_error"),
        (b'{"error": "broken"}', "no error object"),
        (b"<html>", "no part"),
        (b"[]", "no part"),
        (b'{"choices": [{}]}', "no part"),
        (b'{"choices": {"a": 1}}', "no part"),
    ],
)
def test_what_goes_wrong_in_a_stream_stays_wrong(event: bytes, error: str) -> None:
    times = run([(11, completion("a")), (12, event), (12, b"[DONE]")])
    assert error in (times.error or "")
    assert times.first_token_seconds == 1
