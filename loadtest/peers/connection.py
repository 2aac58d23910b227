"""One keep-alive HTTP/1.1 connection that posts JSON; light, as it shares the server's machine."""

import asyncio
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """What came back; `reusable` says whether the server keeps the connection."""

    status: int
    body: bytes
    reusable: bool


class Connection:
    """Posts one request at a time to one server and reconnects where the server closed."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"an http:// address is needed, not {base_url}")
        self._host = parts.hostname
        self._port = parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def post(self, path: str, body: bytes) -> Response:
        """Send `body` as JSON. Raises OSError or EOFError when a fresh connection fails too."""
        reused = self._streams is not None
        try:
            return await self._exchange(path, body)
        except (OSError, EOFError):
            await self._close()
            if not reused:
                raise
        # The server may drop an idle connection at any time; only a fresh one tells the truth.
        return await self._exchange(path, body)

    async def _exchange(self, path: str, body: bytes) -> Response:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._host, self._port, limit=MAX_HEAD_BYTES
            )
        reader, writer = self._streams
        writer.write(self._head(path, len(body)) + body)
        await writer.drain()
        response = await read_response(reader)
        if not response.reusable:
            await self._close()
        return response

    def _head(self, path: str, length: int) -> bytes:
        return (
            f"POST {self._prefix}{path} HTTP/1.1\r\n"
            f"Host: {self._host}:{self._port}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()

    async def _close(self) -> None:
        if self._streams is None:
            return
        _, writer = self._streams
        self._streams = None
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            # The peer was gone first; nothing is left to close.
            return


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Read one response with a length, chunked, or up to the end of the connection."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:] if line)
    headers = {name.strip().lower(): value.strip().lower() for name, _, value in fields}
    reusable = headers.get("connection") != "close"
    if headers.get("transfer-encoding") == "chunked":
        body = await _read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body, reusable = await reader.read(), False
    return Response(int(lines[0].split(" ")[1]), body, reusable)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    # Trailers, if any, end with an empty line.
    while (await reader.readline()).strip():
        pass
    return b"".join(parts)
