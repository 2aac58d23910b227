"""One client's connection: its body, bounded, and whether it is still there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from finlora.api.errors import BodyTooLargeError

T = TypeVar("T")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, sent in one piece or in chunks. Raises BodyTooLargeError.

    Starlette's own limit would answer in plain text, without OpenAI's error object.
    """
    chunks = []
    num_left = max_bytes
    async for chunk in request.stream():
        num_left -= len(chunk)
        if num_left < 0:
            raise BodyTooLargeError(f"the body is larger than {max_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; it is cancelled when the client goes. Raises ClientDisconnect.

    A disconnect is noticed only by who listens: without this a queued request would wait for
    nobody. The body must have been read.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
