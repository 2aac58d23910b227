"""A streamed answer over asyncio, read as it comes; light, as it shares the server's machine."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import orjson

from loadtest.bodies import Body
from loadtest.server_api import ServerAPI
from loadtest.sse import EventReader
from loadtest.stream_times import StreamTimes, error_code

MAX_HEAD_BYTES = 64 * 1024
# What a broken connection, or an answer that is no HTTP, raises.
FAILURES = (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError)


def post_request(server: ServerAPI, path: str, body: Body) -> bytes:
    """A whole HTTP/1.1 request."""
    content = orjson.dumps(body)
    headers = server.headers() | {
        "Host": urlsplit(server.address).netloc,
        "Content-Length": str(len(content)),
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers, names and values in lower case."""

    status: int
    headers: dict[str, str]


class StreamConnection:
    """One connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, server: ServerAPI) -> Self:
        """Connect. Raises OSError."""
        parts = urlsplit(server.address)
        port = parts.port or 80
        return cls(*await asyncio.open_connection(parts.hostname, port, limit=MAX_HEAD_BYTES))

    @property
    def usable(self) -> bool:
        """Whether the server has not closed it while it was idle."""
        return not self._reader.at_eof()

    def close(self) -> None:
        """Drop it; the server ends what it still computes for it."""
        self._writer.close()

    async def ask(self, request: bytes, times: StreamTimes) -> str | None:
        """Send a request and note its tokens; what was wrong with the answer, if anything.

        Raises FAILURES; the connection is of no use then.
        """
        self._writer.write(request)
        head = await self._head()
        if head.status != 200:
            refusal = b"".join([piece async for piece in self._body(head)])
            return f"{head.status} {_code(refusal)}"
        events = EventReader()
        async for piece in self._body(head):
            for event in events.feed(piece):
                times.event(event, time.perf_counter())
        return times.error

    async def _head(self) -> Head:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        parted = (line.partition(":") for line in lines[1:] if line)
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in parted}
        return Head(int(lines[0].split(" ")[1]), headers)

    async def _body(self, head: Head) -> AsyncIterator[bytes]:
        if head.headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(head.headers["content-length"]))
            return
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\r\n")


def _code(refusal: bytes) -> str:
    try:
        return error_code(orjson.loads(refusal))
    except ValueError:
        return error_code(None)
