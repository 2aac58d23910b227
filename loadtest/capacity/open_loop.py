"""Open-loop load: every request is sent when it is due, whatever became of those before it.

Clients that wait for an answer before they ask again (closed loop) ask less just when the server is
slow, and the requests they did not send are the slow ones: coordinated omission. Here a latency
counts from the moment a request was due, so what the client itself was late with counts too.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.bodies import completion
from loadtest.capacity.stream_connection import FAILURES, StreamConnection, post_request
from loadtest.headlines import Headline
from loadtest.mixes import Ask
from loadtest.server_api import ServerAPI
from loadtest.stream_times import StreamTimes

PATH = "/v1/completions"
# Far more than are answered in time; further ones fail at once, and the machine stays usable.
MAX_IN_FLIGHT = 1000

Work = Iterator[tuple[Ask, Headline]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times in seconds from when it was due; infinite where they never came."""

    due: float  # since the beginning
    late_by: float  # when it was sent: the client's own doing
    first_token: float
    end: float
    error: str | None


class OpenLoop:
    """Sends streamed completions over as many connections as they need."""

    def __init__(self, server: ServerAPI, work: Work, max_tokens: int) -> None:
        self._server = server
        self._work = work
        self._max_tokens = max_tokens
        self._idle: list[StreamConnection] = []
        self._in_flight = 0

    async def run(self, dues: Sequence[float], patience_seconds: float) -> list[Outcome]:
        """One request for each due time, which count in seconds from now and rise.

        What is not answered `patience_seconds` after the last one was due is given up.
        """
        begin = time.perf_counter()
        give_up = begin + (dues[-1] if dues else 0.0) + patience_seconds
        tasks: list[asyncio.Task[Outcome]] = []
        async with asyncio.TaskGroup() as group:
            for due in dues:
                await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
                tasks.append(group.create_task(self._one(begin, due, give_up)))
        self._close_idle()
        return [task.result() for task in tasks]

    async def _one(self, begin: float, due: float, give_up: float) -> Outcome:
        ask, headline = next(self._work)
        body = completion(ask.model, headline, self._max_tokens, stream=True)
        request = post_request(self._server, PATH, body)
        times = StreamTimes(begin + due)
        late_by = time.perf_counter() - times.begin
        try:
            async with asyncio.timeout(give_up - time.perf_counter()):
                error = await self._ask(request, times)
        except FAILURES as failure:
            error = type(failure).__name__
        end = time.perf_counter() - times.begin
        if error is not None:
            return Outcome(due, late_by, math.inf, math.inf, error)
        return Outcome(due, late_by, times.first_token_seconds or math.inf, end, None)

    async def _ask(self, request: bytes, times: StreamTimes) -> str | None:
        if self._in_flight >= MAX_IN_FLIGHT:
            return "too many requests in flight"
        self._in_flight += 1
        connection = None
        try:
            connection = self._reused() or await StreamConnection.open(self._server)
            error = await connection.ask(request, times)
            if error is None:
                self._idle.append(connection)
                connection = None
            return error
        finally:
            self._in_flight -= 1
            if connection is not None:
                connection.close()

    def _reused(self) -> StreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
