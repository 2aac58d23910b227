"""HTTP/1.1 over gevent for the users of a locust test; a stream is read line by line as it comes.

`read(size)` of the same library, and with it locust's own `iter_lines`, waits until `size` bytes
are there: whoever measures first tokens with that measures something else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException

import orjson
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPSocketPoolResponse

from loadtest.bodies import Body
from loadtest.server_api import ServerAPI
from loadtest.sse import EventReader
from loadtest.stream_times import error_code

# What a request can fail with besides a status; the library's own errors are HTTPExceptions.
FAILURES = (OSError, HTTPException)
MAX_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `pause_seconds` is what a server that is full asks for."""

    status: int
    body: bytes
    pause_seconds: float

    @property
    def code(self) -> str:
        """What its error object calls itself."""
        try:
            return error_code(orjson.loads(self.body))
        except ValueError:
            return error_code(None)


class Connection:
    """One connection of one user; it is opened again where the server closed it."""

    def __init__(self, server: ServerAPI, timeout_seconds: float) -> None:
        self._client = HTTPClient.from_url(
            server.address,
            headers=server.headers(),
            connection_timeout=timeout_seconds,
            network_timeout=timeout_seconds,
        )

    @contextmanager
    def post(self, path: str, body: Body) -> Iterator[HTTPSocketPoolResponse]:
        """Send JSON; what comes back has its head read, not its body. Raises FAILURES."""
        response = self._client.request("POST", path, orjson.dumps(body))
        try:
            yield response
        finally:
            response.release()

    def close(self) -> None:
        """Close it."""
        self._client.close()


def whole(response: HTTPSocketPoolResponse) -> Answer:
    """Read the rest of an answer. Raises FAILURES."""
    return Answer(response.status_code, bytes(response.read()), _pause(response))


def events(response: HTTPSocketPoolResponse) -> Iterator[bytes]:
    """The data of each event at the moment its last line is here. Raises FAILURES."""
    reader = EventReader()
    while line := response.readline(b"\n"):
        yield from reader.feed(line)


def _pause(response: HTTPSocketPoolResponse) -> float:
    try:
        return min(MAX_PAUSE_SECONDS, float(str(response.get("retry-after", "0"))))
    except ValueError:
        return 0.0
