"""Sends requests of a file to a server, each for as long as the server is only busy."""

import asyncio
import time
from itertools import count
from typing import Any

import httpx

from finlora.batch.requests import BatchRequest
from finlora.batch.responses import answered
from finlora.batch.window import Window
from finlora.errors import RemoteError
from finlora.predict.remote import BUSY, message_of, seconds_to_wait

# Without any answer, while no request is being worked on: longer than a server takes to load.
PATIENCE_SECONDS = 300.0


class Sender:
    """Gets the lines of a response file from a server. To be told to come back is no answer."""

    def __init__(self, client: httpx.AsyncClient, *, concurrency: int) -> None:
        self._client = client
        self._window = Window(concurrency)
        self._last_answer = time.monotonic()

    async def send(self, request: BatchRequest) -> dict[str, Any]:
        """The response's line. Raises RemoteError: the server is gone, or busy for too long."""
        for number in count():
            async with self._window.place():
                answer = await self._post(request)
            if answer.status_code not in BUSY:
                break
            self._window.turned_away()
            self._check_patience(answer, request)
            await asyncio.sleep(seconds_to_wait(answer, number))
        self._last_answer = time.monotonic()
        self._window.answered()
        return _line(request, answer)

    async def _post(self, request: BatchRequest) -> httpx.Response:
        try:
            return await self._client.post(request.url, json=request.body)
        except httpx.HTTPError as error:
            raise RemoteError(
                f"{self._client.base_url} does not answer ({error or type(error).__name__}): "
                "is `finlora serve` running there?"
            ) from error

    def _check_patience(self, answer: httpx.Response, request: BatchRequest) -> None:
        """A server that works on other requests has room again when they are done."""
        seconds = time.monotonic() - self._last_answer
        if self._window.num_open or seconds < PATIENCE_SECONDS:
            return
        raise RemoteError(
            f"{self._client.base_url} has answered nothing for {seconds:.0f} s but "
            f"{answer.status_code} ({message_of(answer)}), {request.custom_id} last; "
            "start this run again when it has room, and it goes on"
        )


def _line(request: BatchRequest, answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = {"error": {"message": answer.text[:1000]}}
    request_id = answer.headers.get("x-request-id")
    return answered(request.custom_id, answer.status_code, request_id, body)
