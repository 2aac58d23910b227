"""Log lines, one event a line: JSON objects for machines, or text for people.

An event is a message that never varies and fields that do. What clients wrote is a field, and in
both forms it can neither end its line nor reach a terminal as control characters.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import IO, Any

from finlora.config import LogFormat, LogLevel

# Beside the standard attributes of a record.
FIELDS = "finlora_fields"
BARE = re.compile(r"[\w.:/@+-]+", re.ASCII)
# Theirs tell of their own affairs: what a request is, we say.
OTHERS_LEVEL = logging.WARNING


def log_event(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Log a message with fields; those that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    logger.log(level, message, extra={FIELDS: known})


def escaped(text: str) -> str:
    """The text with everything written out that is not printable, such as line ends and escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class JSONFormatter(logging.Formatter):
    """An object a line; ASCII, so that nothing in it can be read as a line end."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if trace := _traceback(self, record):
            line["exception"] = trace
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then `name=value`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        head = f"{_time(record)} {record.levelname} {record.name}: {escaped(record.getMessage())}"
        pairs = (f"{name}={_value(value)}" for name, value in _fields(record).items())
        trace = (f"\n  {escaped(line)}" for line in _traceback(self, record).splitlines())
        return " ".join((head, *pairs)) + "".join(trace)


FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {
    LogFormat.JSON: JSONFormatter,
    LogFormat.TEXT: TextFormatter,
}


def configure_logging(log_format: LogFormat, level: LogLevel, stream: IO[str]) -> None:
    """Send the lines of this process to a stream. For entry points: libraries must not call it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(FORMATTERS[log_format]())
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(ours, OTHERS_LEVEL), force=True)
    logging.getLogger("finlora").setLevel(ours)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, FIELDS, {})
    return fields


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, str) and not BARE.fullmatch(text):
        text = json.dumps(text, ensure_ascii=False)
    return escaped(text)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
