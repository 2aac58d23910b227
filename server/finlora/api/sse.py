"""Server-sent events as OpenAI's clients read them."""

import logging
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from finlora.api.connection import run_while_connected
from finlora.api.errors import INTERNAL_ERROR, error_body, kind_of

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Frames as they come; an error after the first is told in a frame of its own.

    The generator is closed whatever happens, also when the client goes between two frames.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(rest, headers=headers, media_type="text/event-stream")
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all frames, as long as somebody reads them."""
        try:
            await run_while_connected(receive, self._send_all(send))
        except ClientDisconnect:
            logger.debug("the client left its stream")
        finally:
            await self._rest.aclose()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        await _send_part(send, self._first)
        try:
            async for frame in self._rest:
                await _send_part(send, frame)
        except Exception as error:
            if kind_of(error) is INTERNAL_ERROR:
                logger.exception("a stream failed")
            await _send_part(send, frame_of(error_body(error)) + DONE)
        await send({"type": "http.response.body", "body": b""})


def frame_of(content: Any) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
