"""Labels every row of a source and writes it, in order, in memory that does not grow."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from finlora.errors import AdapterError, EngineStoppedError, FinLoRAError, RemoteError
from finlora.offline.results import Classification, Text
from finlora.predict.columns import AddedColumns
from finlora.predict.labeller import Labeller
from finlora.predict.outputs import Output
from finlora.predict.progress import MAX_REPORTED, Standing, View
from finlora.predict.rows import Row
from finlora.predict.sources import Source

# A crash loses at most so much work: rows in memory, or seconds.
ROWS_IN_A_CHUNK = 512
SECONDS_IN_A_CHUNK = 5.0
SECONDS_BETWEEN_UPDATES = 0.25
# Not about a row: every other one would fail alike.
FATAL = (AdapterError, EngineStoppedError, RemoteError)


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run did, what an earlier one had done included."""

    num_rows: int
    num_bad: int


class Run:
    """One input on its way to one output."""

    def __init__(
        self,
        source: Source,
        text_column: str,
        added: AddedColumns,
        output: Output,
        view: View,
        *,
        columns_are_fixed: bool = False,
    ) -> None:
        self._source = source
        self._columns = frozenset(source.columns) if columns_are_fixed else None
        self._text_column = text_column
        self._added = added
        self._output = output
        self._view = view
        self._read: deque[Row] = deque()  # and not yet answered
        self._chunk: list[dict[str, Any]] = []
        self._num_bad = 0  # in the chunk
        self._num_reported = 0
        self._first_row = output.mark.num_rows
        self._first_fraction = 0.0
        self._started = self._written = self._shown = time.monotonic()

    def label_all(self, labeller: Labeller) -> Tally:
        """Go on behind what the output has. Raises FinLoRAError; what is labelled is kept."""
        if self._first_row:
            self._view.line(f"goes on after {self._first_row:,} rows")
        try:
            with closing(labeller.each(self._texts())) as answers:
                for answer in answers:
                    self._take(self._read.popleft(), answer)
        finally:
            self._write()
        self._output.finish()
        mark = self._output.mark
        return Tally(mark.num_rows, mark.num_bad)

    def _texts(self) -> Iterator[Text]:
        rows = self._source.rows()
        for _ in islice(rows, self._first_row):
            pass
        self._started = time.monotonic()
        self._first_fraction = self._source.fraction() or 0.0
        for row in rows:
            checked = self._added.checked(row, self._columns)
            self._read.append(checked)
            yield checked.text(self._text_column)

    def _take(self, row: Row, answer: Classification | FinLoRAError) -> None:
        if isinstance(answer, FATAL):
            raise answer
        self._chunk.append(self._added.filled(row, answer))
        if isinstance(answer, FinLoRAError):
            self._num_bad += 1
            self._report(f"{row.where}: {answer}")
        now = time.monotonic()
        if now - self._written > SECONDS_IN_A_CHUNK or len(self._chunk) >= ROWS_IN_A_CHUNK:
            self._write()
        if now - self._shown > SECONDS_BETWEEN_UPDATES:
            self._shown = now
            self._view.update(self._standing(now))

    def _report(self, problem: str) -> None:
        self._num_reported += 1
        if self._num_reported <= MAX_REPORTED:
            self._view.line(problem)
        if self._num_reported == MAX_REPORTED:
            self._view.line("further rows with errors are told in the output only")

    def _write(self) -> None:
        if self._chunk:
            self._output.write(self._chunk, self._num_bad)
            self._chunk, self._num_bad = [], 0
        self._written = time.monotonic()

    def _fraction(self, num_rows: int) -> float | None:
        """The share of the input that is answered: rows that are only read ahead do not count."""
        read = self._source.fraction()
        num_read = num_rows + len(self._read)
        return None if read is None else read * num_rows / max(num_read, 1)

    def _standing(self, now: float) -> Standing:
        mark = self._output.mark
        num_rows = mark.num_rows + len(self._chunk)
        return Standing(
            num_rows=num_rows,
            num_new=num_rows - self._first_row,
            num_bad=mark.num_bad + self._num_bad,
            fraction=self._fraction(num_rows),
            first_fraction=self._first_fraction,
            seconds=now - self._started,
        )
