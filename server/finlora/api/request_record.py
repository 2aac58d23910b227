"""What is known of one HTTP request while it runs; logs, metrics and traces read it at the end.

The engine tells of a sequence's end on its own thread, for a client that has left later than the
HTTP layer notices: `settled` waits for that.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from finlora.metrics import FinishedRequest

CLIENT_GONE = 499  # as nginx logs it; nobody reads the answer
FIRST_REFUSAL, INTERNAL_ERROR = 400, 500
# By the reason that a sequence ended for, the worst first.
OUTCOMES = {"error": "error", "refused": "refused", "abort": "disconnected"}
# One step of the engine, during which it hears of no abort, may take this long on a slow machine.
SETTLE_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request; times are `time.monotonic()` seconds."""

    method: str
    path: str
    client: str | None
    headers: Mapping[str, str]
    arrival_time: float = field(default_factory=time.monotonic)
    first_byte_time: float | None = None
    end_time: float | None = None
    request_id: str | None = None
    route: str = ""
    status: int | None = None
    is_stream: bool = False
    error_code: str | None = None  # of the API
    trace_id: str | None = None
    prompts: list[Sequence[int]] = field(default_factory=list)
    sequences: list[FinishedRequest] = field(default_factory=list)
    _book: dict[str, "RequestRecord"] = field(default_factory=dict)  # of the whole server
    _open: set[str] = field(default_factory=set)
    _settled: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def seconds(self) -> float:
        """Arrival to the last byte of the answer."""
        return (self.end_time or time.monotonic()) - self.arrival_time

    @property
    def outcome(self) -> str:
        """`ok`, `refused`, `error` or `disconnected`.

        A status that tells of an error has the word: when one sequence fails, the others of its
        request end as aborted.
        """
        status = CLIENT_GONE if self.status is None else self.status
        if status >= FIRST_REFUSAL and status != CLIENT_GONE:
            return "error" if status >= INTERNAL_ERROR else "refused"
        reasons = {sequence.reason for sequence in self.sequences}
        found = next((reason for reason in OUTCOMES if reason in reasons), None)
        if found is not None:
            return OUTCOMES[found]
        return "disconnected" if status == CLIENT_GONE else "ok"

    def begin(self, sequence_id: str, prompt: Sequence[int]) -> None:
        """A sequence is handed to the engine."""
        self.prompts.append(prompt)
        self._open.add(sequence_id)
        self._book[sequence_id] = self

    def end(self, sequence_id: str, sequence: FinishedRequest | None = None) -> None:
        """A sequence is over, or the engine never took it; safe from the engine's thread."""
        if sequence is not None:
            self.sequences.append(sequence)
        self._book.pop(sequence_id, None)
        self._open.discard(sequence_id)
        if not self._open and self._settled is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._settled.set)

    async def settled(self) -> None:
        """Wait until the engine has told of all sequences, for a bounded time."""
        if not self._open:
            return
        # Set before the second look: whoever ends the last sequence after it sees the event.
        self._loop, self._settled = asyncio.get_running_loop(), asyncio.Event()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), SETTLE_SECONDS)


class RequestBook:
    """The records of all requests that have sequences in the engine."""

    def __init__(self) -> None:
        self._records: dict[str, RequestRecord] = {}

    def open(self, scope: Scope) -> RequestRecord:
        """A record for the request that begins."""
        client = scope.get("client")
        return RequestRecord(
            method=scope["method"],
            path=scope["path"],
            client=None if client is None else client[0],
            headers=Headers(scope=scope),
            _book=self._records,
        )

    def on_finished(self, sequence: FinishedRequest) -> None:
        """Add a sequence to its request; called on the engine's thread."""
        record = self._records.get(sequence.request_id)
        if record is not None:
            record.end(sequence.request_id, sequence)


CURRENT: ContextVar[RequestRecord | None] = ContextVar("finlora_request", default=None)


def begin_sequence(sequence_id: str, prompt: Sequence[int]) -> None:
    """The request that is handled now hands a sequence to the engine."""
    if record := CURRENT.get():
        record.begin(sequence_id, prompt)


def forget_sequence(sequence_id: str) -> None:
    """The engine has ended a sequence with an error, or never took it."""
    if record := CURRENT.get():
        record.end(sequence_id)


def note_error(code: str) -> None:
    """The request that is handled now is answered with an error of the API."""
    if record := CURRENT.get():
        record.error_code = code
