"""How much may surround a body, through a socket of our own: client libraries have bounds, too."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import httpx
import pytest

from finlora.api.heads import MAX_HEAD_BYTES
from tests.api.live import DEADLINE_SECONDS, LiveServer

PIECE = 64 * 1024
MANY_PIECES = 32 * 1024 * 1024 // PIECE
LARGE = b"x" * (MAX_HEAD_BYTES + 1)
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def connection(server: LiveServer) -> Iterator[socket.socket]:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with closing(socket.create_connection(address, DEADLINE_SECONDS)) as connection:
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    with suppress(ConnectionResetError):  # it does not read what is still on its way
        while piece := connection.recv(PIECE):
            received += piece
    return received


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Large: " + LARGE + b"\r\n\r\n",
        b"GET /health?" + LARGE + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X-Many: of these\r\n" * 4096 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + LARGE + b": x\r\n\r\n",
        CHUNKED + b"0\r\nX-Large: " + LARGE + b"\r\n\r\n",
    ],
    ids=["header", "address", "many headers", "name", "trailer"],
)
def test_a_large_head_is_refused_and_the_connection_closed(
    connection: socket.socket, sent: bytes
) -> None:
    connection.sendall(sent)
    head, _, body = answer_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"\r\nconnection: close" in head
    assert f"content-length: {len(body)}".encode() in head
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
    assert str(MAX_HEAD_BYTES) in error["message"]


@pytest.mark.parametrize(
    "beginning",
    [b"GET /health HTTP/1.1\r\nX-Endless: ", b"GET /", b"\r\n", CHUNKED + b"0\r\nX-Endless: "],
    ids=["header", "address", "nothing", "trailer"],
)
def test_what_never_ends_is_not_waited_for(connection: socket.socket, beginning: bytes) -> None:
    num_sent = 0
    piece = (b"\r\n" if beginning == b"\r\n" else b"xx") * (PIECE // 2)
    with suppress(ConnectionError):
        connection.sendall(beginning)
        for _ in range(MANY_PIECES):
            connection.sendall(piece)
            num_sent += PIECE
    # The sockets of both sides hold a few megabytes.
    assert num_sent < MANY_PIECES * PIECE // 2
    assert b"HTTP/1.1 431 " in answer_of(connection)


def test_a_head_within_the_bound_is_read(http: httpx.Client) -> None:
    headers = {"X-Large": "x" * (MAX_HEAD_BYTES - 1024)}
    for _ in range(3):  # on one connection: each has the bound for itself
        assert http.get("/health", headers=headers).status_code == 200


def test_a_large_body_has_a_bound_of_its_own(http: httpx.Client) -> None:
    pieces = (b" " * 1000 for _ in range(150))
    response = http.post("/v1/completions", content=pieces)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")
