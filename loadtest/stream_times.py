"""When the tokens of one streamed answer came, from its events and a clock that is read outside."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

DONE = b"[DONE]"


class Moment(StrEnum):
    """What an event was for the clock."""

    FIRST_TOKEN = "first token"
    NEXT_TOKEN = "next token"


@dataclass(slots=True)
class StreamTimes:
    """The times of one answer, in seconds; `begin` is when its clock started.

    An event carries one token, or several where one alone is no whole character. An answer that
    shows no text at all has its first token where it ends.
    """

    begin: float
    first_token_seconds: float | None = None
    gaps: list[float] = field(default_factory=list)
    _last: float = 0.0
    _done: bool = False
    _failure: str | None = None

    @property
    def error(self) -> str | None:
        """What was wrong with the stream, once it is over."""
        return self._failure or (None if self._done else "the stream ended early")

    def event(self, payload: bytes, now: float) -> tuple[Moment, float] | None:
        """Note an event that came at `now`; if it was a token, which, and after how long."""
        if payload == DONE:
            self._done = True
            return None
        try:
            text, ended = _content(orjson.loads(payload))
        except _StreamError as error:
            self._failure = str(error)
            return None
        except (ValueError, TypeError, LookupError, AttributeError):
            self._failure = "an event is no part of an answer"
            return None
        if text or (ended and self.first_token_seconds is None):
            return self._token(now)
        return None

    def _token(self, now: float) -> tuple[Moment, float]:
        last, self._last = self._last, now
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self.begin
            return Moment.FIRST_TOKEN, self.first_token_seconds
        self.gaps.append(now - last)
        return Moment.NEXT_TOKEN, self.gaps[-1]


class _StreamError(Exception):
    """The server says in the stream that it cannot go on."""


def _content(event: dict[str, Any]) -> tuple[str, bool]:
    """The text that a chunk of a completion or of a chat adds, and whether it is the last."""
    if "error" in event:
        raise _StreamError(error_code(event))
    if not event["choices"]:  # the one with the usage
        return "", False
    choice = event["choices"][0]
    text = choice["delta"].get("content") if "delta" in choice else choice["text"]
    return text or "", choice.get("finish_reason") is not None


def error_code(body: Any) -> str:
    """What an OpenAI error object calls itself."""
    error = body.get("error") if isinstance(body, dict) else None
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return str(code or "no error object")[:100]
