"""The outermost look at every HTTP request: one log line, its metrics and its trace at the end."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finlora.api.request_ids import SCOPE_KEY
from finlora.api.request_record import CURRENT, INTERNAL_ERROR, RequestBook, RequestRecord
from finlora.api.state import ServerState
from finlora.errors import EngineStoppedError
from finlora.logs import log_event
from finlora.metrics import FinishedRequest

logger = logging.getLogger("finlora.request")

OTHER_ROUTE = "_other"
# Asked every few seconds, for ever: seen at the level of debugging only, and not traced.
PROBES = frozenset({"/health", "/ready", "/metrics", "/version"})


class Tracer(Protocol):
    """Makes spans of a request that is over."""

    def export(self, record: RequestRecord) -> None:
        """Send its spans; sets `trace_id`."""

    def close(self) -> None:
        """Send what is left."""


class AccessLog:
    """Middleware. Nothing of a prompt or an answer is kept unless the settings say so."""

    def __init__(self, app: ASGIApp, state: ServerState, tracer: Tracer | None = None) -> None:
        self._app = app
        self._state = state
        self._tracer = tracer
        self._book = RequestBook()
        state.metrics.on_finished(self._book.on_finished)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._book.open(scope)
        token = CURRENT.set(record)
        try:
            await self._app(scope, receive, _watched(send, record))
        except Exception:
            record.status, record.error_code = INTERNAL_ERROR, "internal_error"
            raise
        finally:
            CURRENT.reset(token)
            record.end_time = record.end_time or time.monotonic()
            record.route = route_of(scope)
            record.request_id = scope.get(SCOPE_KEY)
            try:
                await record.settled()
            finally:
                self._report(record)

    def _report(self, record: RequestRecord) -> None:
        if record.status is not None:
            self._state.metrics.http.answered(record.route, record.status, record.seconds)
        is_probe = record.route in PROBES
        if self._tracer is not None and not is_probe:
            self._tracer.export(record)
        level = logging.ERROR if record.outcome == "error" else logging.INFO
        level = logging.DEBUG if is_probe else level
        if logger.isEnabledFor(level):
            texts = self._texts(record) if self._state.settings.log_prompts else {}
            log_event(logger, level, "request", **fields_of(record), **texts)

    def _texts(self, record: RequestRecord) -> dict[str, list[str]]:
        try:
            tokenizer = self._state.engine.tokenizer
        except EngineStoppedError:
            return {}
        prompts = [tokenizer.decode(p, skip_special_tokens=False) for p in record.prompts]
        return {"prompts": prompts, "answers": [s.text for s in record.sequences]}


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """What the line says; of several sequences the sums, the longest wait, the first token."""
    sequences = record.sequences
    first = sequences[0] if sequences else None
    error, reason = _error(record)
    return {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "outcome": record.outcome,
        "error": error,
        "reason": reason,
        "adapter": first and first.adapter,
        "digest": first and first.digest,
        "finish_reasons": [s.reason for s in sequences] or None,
        "prompt_tokens": _total(sequences, lambda s: s.num_prompt_tokens),
        "cached_tokens": _total(sequences, lambda s: s.num_cached_tokens),
        "generation_tokens": _total(sequences, lambda s: s.num_output_tokens),
        "queue_seconds": _seconds(max, (s.queue_seconds for s in sequences)),
        "first_token_seconds": _seconds(min, (s.first_token_seconds for s in sequences)),
        "seconds": round(record.seconds, 6),
    }


def route_of(scope: Scope) -> str:
    """The path as the server declares it, with its prefix: `/v1/models/{model}`."""
    own: str | None = getattr(scope.get("route"), "path_format", None)
    if own is None:
        return OTHER_ROUTE
    try:
        tail = own.format(**scope.get("path_params", {}))
    except LookupError:  # a mounted application keeps its part of the path to itself
        return own
    path: str = scope["path"]
    return path.removesuffix(tail) + own if path.endswith(tail) else own


def _watched(send: Send, record: RequestRecord) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            types = [value for name, value in message["headers"] if name == b"content-type"]
            record.is_stream = any(value.startswith(b"text/event-stream") for value in types)
        await send(message)
        if message["type"] == "http.response.body":
            record.first_byte_time = record.first_byte_time or time.monotonic()
            record.end_time = None if message.get("more_body") else time.monotonic()

    return watched


def _error(record: RequestRecord) -> tuple[str | None, str | None]:
    failed = [(s.error, s.error_text) for s in record.sequences if s.error is not None]
    error, reason = failed[0] if failed else (None, None)
    return record.error_code or error, reason


def _total(
    sequences: list[FinishedRequest], tokens: Callable[[FinishedRequest], int]
) -> int | None:
    return sum(map(tokens, sequences)) if sequences else None


def _seconds(choose: Callable[[list[float]], float], times: Iterable[float | None]) -> float | None:
    known = [seconds for seconds in times if seconds is not None]
    return round(choose(known), 6) if known else None
