"""uvicorn's HTTP with a bound on what surrounds a body: the address and the headers.

Its parser has none, and both are read before any key is checked.
"""

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from finlora.api.errors import HEAD_TOO_LARGE, body_of

MAX_HEAD_BYTES = 64 * 1024
STATUS_LINE = b"HTTP/1.1 431 Request Header Fields Too Large"


class BoundedHeads(HttpToolsProtocol):
    """Answers a larger head with a 431 and closes the connection."""

    _num_head_bytes = 0  # of this request, as far as they are parsed
    _num_pending_bytes = 0  # that the parser may hold: a header is told of when it is whole

    def data_received(self, data: bytes) -> None:
        """Take a piece of the stream."""
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self._num_pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._num_head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind a body in chunks."""
        self._count(len(name) + len(b": ") + len(value) + len(b"\r\n"))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which has a bound of its own."""
        self._num_pending_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does when the parser, or what it calls, has raised an error."""
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _count(self, num_bytes: int) -> None:
        self._num_pending_bytes = 0
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # ends the parser's work on this piece

    def _refuse(self) -> None:
        message = f"the address and the headers are larger than {MAX_HEAD_BYTES} bytes"
        body = orjson.dumps(body_of(HEAD_TOO_LARGE, message))
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        lines = [STATUS_LINE, *(b": ".join(header) for header in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
