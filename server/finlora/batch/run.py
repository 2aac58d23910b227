"""Sends the requests of a file, some at a time, and keeps every answer."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from finlora.batch.requests import Line
from finlora.batch.responses import ResponseFile, problem, refused
from finlora.batch.sender import Sender
from finlora.errors import RequestError
from finlora.predict.progress import MAX_REPORTED, Standing, View

SECONDS_BETWEEN_WRITES = 1.0


@dataclass(slots=True)
class Tally:
    """What a run did."""

    num_known: int = 0  # before it began
    num_new: int = 0
    num_new_bad: int = 0


class BatchRun:
    """One file of requests on its way to its file of responses."""

    def __init__(
        self, client: httpx.AsyncClient, output: ResponseFile, view: View, *, concurrency: int
    ) -> None:
        self.tally = Tally(num_known=output.num_known)
        self.fraction: float | None = None  # of the input that was read
        self._sender = Sender(client, concurrency=concurrency)
        self._output = output
        self._view = view
        self._concurrency = concurrency
        self._running: set[asyncio.Task[dict[str, Any]]] = set()
        self._seen: set[str] = set()
        self._started = self._written = time.monotonic()

    async def send_all(self, lines: Iterable[Line]) -> Tally:
        """Until every request has its line. Raises RemoteError; what is answered is kept."""
        try:
            for line in lines:
                await self._begin(line)
            while self._running:
                await self._wait()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            self._output.write()
        return self.tally

    async def _begin(self, line: Line) -> None:
        request, refusal = line.request, self._refusal(line)
        if self._output.has(line.custom_id, refusal):
            return
        if request is None or refusal is not None:
            assert refusal is not None
            self._keep(refusal)
            return
        while len(self._running) >= self._concurrency:
            await self._wait()
        self._running.add(asyncio.create_task(self._sender.send(request)))

    def _refusal(self, line: Line) -> dict[str, Any] | None:
        """The response of a request that is not sent."""
        error = line.problem
        if line.custom_id in self._seen:
            error = RequestError(f"{line.where}: custom_id is there twice", param="custom_id")
        if line.custom_id is not None:
            self._seen.add(line.custom_id)
        return None if error is None else refused(line.custom_id, error)

    async def _wait(self) -> None:
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        # All are looked at before the first error ends the run: no answer is lost.
        results = await asyncio.gather(*done, return_exceptions=True)
        for line in results:
            if not isinstance(line, BaseException):
                self._keep(line)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    def _keep(self, line: dict[str, Any]) -> None:
        self._output.add(line)
        self.tally.num_new += 1
        told = problem(line)
        if told is not None:
            self.tally.num_new_bad += 1
            if self.tally.num_new_bad <= MAX_REPORTED:
                self._view.line(told)
        now = time.monotonic()
        if now - self._written > SECONDS_BETWEEN_WRITES:
            self._written = now
            self._output.write()
            self._view.update(self._standing(now))

    def _standing(self, now: float) -> Standing:
        return Standing(
            num_rows=self.tally.num_known + self.tally.num_new,
            num_new=self.tally.num_new,
            num_bad=self._output.num_bad,
            fraction=self.fraction,
            first_fraction=0.0,
            seconds=now - self._started,
        )
