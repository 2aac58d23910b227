"""Whatever an event contains, it is one line, and says what it was given."""

import io
import json
import logging
import queue
from collections.abc import Iterator
from logging.handlers import QueueHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finlora.config import LogFormat, LogLevel
from finlora.logs import JSONFormatter, TextFormatter, configure_logging, escaped, log_event

NASTY = 'a\r\nb\x1b[31mred\x00\u2028\u202e\x85\ud800 = "q" \\'


def record(message: str = "served", **fields: object) -> logging.LogRecord:
    made: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.Logger("finlora.test")
    logger.addHandler(QueueHandler(made))
    log_event(logger, logging.INFO, message, **fields)
    return made.get_nowait()


@pytest.fixture
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("finlora")
    before = (root.handlers[:], root.level, ours.level)
    root.handlers.clear()  # `force` would close those of pytest
    yield
    root.handlers[:], level, own = before
    root.setLevel(level)
    ours.setLevel(own)


@given(st.text(), st.text())
def test_json_gives_back_what_it_was_given_in_one_line_of_ascii(message: str, value: str) -> None:
    line = JSONFormatter().format(record(message.replace("%", ""), value=value))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["value"] == value


@given(st.text(), st.text())
def test_text_is_one_line_and_nothing_in_it_moves_a_terminal(message: str, value: str) -> None:
    assert TextFormatter().format(record(message.replace("%", ""), value=value)).isprintable()


def test_an_injected_line_stays_in_its_field() -> None:
    forged = "x\n2026-01-01T00:00:00.000+00:00 INFO finlora.request: forged status=200"
    assert "\n" not in TextFormatter().format(record(path=forged))
    assert TextFormatter().format(record(path=NASTY)).isprintable()
    assert escaped(NASTY).isprintable()


def test_text_quotes_what_could_be_taken_for_another_field() -> None:
    line = TextFormatter().format(record(adapter="news", path="/a status=200", n=3, labels=["a"]))
    assert line.endswith(' adapter=news path="/a status=200" n=3 labels=["a"]')


def test_fields_without_a_value_are_left_out() -> None:
    assert "adapter" not in json.loads(JSONFormatter().format(record(adapter=None)))


@pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()])
def test_a_traceback_is_kept(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("broken\x1b")
    except ValueError as error:
        failed = record()
        failed.exc_info = (type(error), error, error.__traceback__)
    text = formatter.format(failed)
    assert "ValueError" in text
    assert "\x1b" not in text


def test_the_level_is_ours_and_libraries_stay_quiet(restored: None) -> None:
    stream = io.StringIO()
    configure_logging(LogFormat.JSON, LogLevel.DEBUG, stream)
    logging.getLogger("finlora.engine").debug("seen")
    logging.getLogger("somebody.else").info("unseen")
    logging.getLogger("somebody.else").warning("seen too")
    messages = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert messages == ["seen", "seen too"]
