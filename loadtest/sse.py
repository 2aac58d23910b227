"""Server-sent events out of bytes that come in pieces of any size."""


class EventReader:
    """Takes pieces of a stream and gives the data of every event that is complete.

    Lines end in LF or CR LF. Fields other than `data`, and comments, are passed over.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that end in this piece."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> bytes | None:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._lines.append(value.removeprefix(b" "))
            return None
        if not self._lines:
            return None
        event, self._lines = b"\n".join(self._lines), []
        return event
