import json

import pytest
from httpx import Response
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.sse import EventReader

texts = st.lists(st.text("ab: é{\u2028"), max_size=6)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces that end at the places."""
    ends = sorted({min(place, len(stream)) for place in places} | {len(stream)})
    return [stream[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@settings(deadline=None)
@given(texts, st.lists(st.integers(0, 99), max_size=9), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_the_stream_is_cut(
    contents: list[str], places: list[int], end: bytes
) -> None:
    sent = [json.dumps(content, ensure_ascii=False).encode() for content in contents]
    stream = b"".join(b"data: " + payload + end + end for payload in sent)
    reader = EventReader()
    assert [event for piece in cut(stream, places) for event in reader.feed(piece)] == sent


def test_an_event_is_there_with_its_last_byte_and_not_before() -> None:
    reader = EventReader()
    assert reader.feed(b"data: 1\n") == []
    assert reader.feed(b"\ndata: 2") == [b"1"]
    assert reader.feed(b"\n\n") == [b"2"]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b": keep-alive\n\ndata: 1\n\n", [b"1"]),
        (b"event: token\nid: 7\ndata:1\nretry: 5\n\n", [b"1"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b"data\n\n", [b""]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"\n\n\n", []),
        (b"data: never ended\n", []),
    ],
)
def test_fields_are_read_as_the_standard_has_them(stream: bytes, events: list[bytes]) -> None:
    assert EventReader().feed(stream) == events


def test_an_independent_reader_of_lines_agrees() -> None:
    stream = "data: é\r\n\r\n: note\ndata: 2\n\n".encode()
    lines = [line for line in Response(200, content=stream).iter_lines() if line[:5] == "data:"]
    assert [f"data: {event.decode()}" for event in EventReader().feed(stream)] == lines
