import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from loadtest.peers.connection import Connection, Response, read_response

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def parse(raw: bytes) -> Response:
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    return await read_response(reader)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokREST", Response(200, b"ok", True)),
        (
            b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n",
            Response(503, b"", False),
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;x=1\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
            Response(200, b"abcd", True),
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", Response(200, b"to the end", False)),
    ],
)
def test_every_way_to_end_a_body(raw: bytes, expected: Response) -> None:
    assert asyncio.run(parse(raw)) == expected


def test_a_body_cut_short_is_an_error() -> None:
    with pytest.raises(EOFError):
        asyncio.run(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"))


class CountingServer:
    """A loopback server that echoes bodies and closes after `answers_per_connection`."""

    def __init__(self, answers_per_connection: int) -> None:
        self._answers = answers_per_connection
        self.connections = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for _ in range(self._answers):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            body = head.split(b" ")[1] + await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()
        await writer.wait_closed()


async def post_many(server: CountingServer, count: int) -> list[bytes]:
    async with server.listening() as address, Connection(address) as connection:
        return [(await connection.post("/x", b"%d" % i)).body for i in range(count)]


@pytest.mark.parametrize(("answers_per_connection", "connections"), [(100, 1), (2, 3), (1, 5)])
def test_one_connection_is_kept_and_replaced_where_the_server_closed_it(
    answers_per_connection: int, connections: int
) -> None:
    server = CountingServer(answers_per_connection)
    assert asyncio.run(post_many(server, 5)) == [b"/v1/x%d" % i for i in range(5)]
    assert server.connections == connections


def test_a_server_that_never_answers_is_an_error_not_a_loop() -> None:
    server = CountingServer(0)
    with pytest.raises((OSError, EOFError)):
        asyncio.run(post_many(server, 1))
    assert server.connections == 1


def test_only_plain_http_addresses_are_taken() -> None:
    with pytest.raises(ValueError, match="http://"):
        Connection("https://example.com/v1")
