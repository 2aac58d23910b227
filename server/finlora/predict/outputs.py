"""Writes labelled rows in durable chunks: to a stream, to a text file, or to Parquet."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from finlora.errors import ConfigError
from finlora.predict.formats import Format
from finlora.predict.journal import Journal, Mark
from finlora.predict.parquet import ParquetParts

Rows = Sequence[dict[str, Any]]
Encode = Callable[[Rows], str]


class Output(Protocol):
    """Where labelled rows go."""

    mark: Mark  # what is there already

    def write(self, rows: Rows, num_bad: int) -> None:
        """A chunk; durable when this returns."""

    def finish(self) -> None:
        """The output is complete."""

    def close(self) -> None:
        """Complete or not, let go of it."""


class StreamOutput:
    """Standard output."""

    def __init__(self, heading: str, encode: Encode) -> None:
        self.mark = Mark()
        self._encode = encode
        self._put(heading)

    def write(self, rows: Rows, num_bad: int) -> None:
        """At once."""
        self._put(self._encode(rows))
        self.mark = replace(
            self.mark,
            num_rows=self.mark.num_rows + len(rows),
            num_bad=self.mark.num_bad + num_bad,
        )

    def finish(self) -> None:
        """A stream needs no end."""

    def close(self) -> None:
        """It belongs to the process."""

    def _put(self, text: str) -> None:
        sys.stdout.buffer.write(_bytes(text))
        sys.stdout.buffer.flush()


class TextOutput:
    """A file that grows; what a crash left behind the last mark is cut off."""

    def __init__(
        self, path: Path, heading: str, encode: Encode, journal: Journal, task: dict[str, Any]
    ) -> None:
        """Raises ConfigError: another task began it, or it was changed since."""
        self.mark = journal.resume(task)
        self._encode = encode
        self._journal = journal
        self._task = task
        num_bytes = path.stat().st_size if path.is_file() else 0
        if num_bytes < self.mark.num_bytes:
            raise _has_lost(path)
        self._file = path.open("r+b" if self.mark.num_bytes else "wb")
        self._file.truncate(self.mark.num_bytes)
        self._file.seek(self.mark.num_bytes)
        if not self.mark.num_bytes:
            self._append(_bytes(heading), 0, 0)

    def write(self, rows: Rows, num_bad: int) -> None:
        """Append, then note it."""
        self._append(_bytes(self._encode(rows)), len(rows), num_bad)

    def finish(self) -> None:
        """The mark goes."""
        self._journal.remove()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, content: bytes, num_rows: int, num_bad: int) -> None:
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.mark = replace(
            self.mark,
            num_rows=self.mark.num_rows + num_rows,
            num_bad=self.mark.num_bad + num_bad,
            num_bytes=self.mark.num_bytes + len(content),
        )
        self._journal.save(self._task, self.mark)


class ParquetOutput:
    """Parts beside the file until it is complete: nobody can append to Parquet."""

    def __init__(
        self,
        path: Path,
        schema: Any,
        journal: Journal,
        task: dict[str, Any],
        *,
        as_text: frozenset[str],  # columns from a file without types
    ) -> None:
        """Raises ConfigError: another task began it, or a part is gone."""
        self.mark = journal.resume(task)
        self._as_text = as_text
        self._path = path
        self._parts = ParquetParts(parts_folder(path), schema)
        if not self._parts.has_all(self.mark.num_parts):
            raise _has_lost(path)
        self._journal = journal
        self._task = task

    def write(self, rows: Rows, num_bad: int) -> None:
        """One part more, then note it."""
        self._parts.write(self.mark.num_parts, [self._typed(row) for row in rows])
        self.mark = replace(
            self.mark,
            num_rows=self.mark.num_rows + len(rows),
            num_bad=self.mark.num_bad + num_bad,
            num_parts=self.mark.num_parts + 1,
        )
        self._journal.save(self._task, self.mark)

    def finish(self) -> None:
        """Join the parts."""
        self._parts.join(self.mark.num_parts, self._path)
        self._journal.remove()

    def close(self) -> None:
        """Nothing is open between two parts."""

    def _typed(self, row: dict[str, Any]) -> dict[str, Any]:
        as_text = self._as_text
        return {
            name: cell(value) if name in as_text and value is not None else value
            for name, value in row.items()
        }


def begin_anew(path: Path) -> None:
    """Delete an output and what an interrupted run left beside it."""
    Journal(path).remove()
    path.unlink(missing_ok=True)
    shutil.rmtree(parts_folder(path), ignore_errors=True)


def _has_lost(path: Path) -> ConfigError:
    """For an unfinished output that is less than its mark says."""
    return ConfigError(f"{path} has lost something since its run ended; --overwrite begins it anew")


def parts_folder(path: Path) -> Path:
    """Where the parts of an unfinished Parquet file are."""
    return path.with_name(f"{path.name}.parts")


def encoder(kind: Format, columns: Sequence[str]) -> tuple[str, Encode]:
    """The heading and the way to write rows as text."""
    if kind is Format.JSONL:
        return "", _json_lines

    def encode(rows: Rows) -> str:
        cells = ([cell(row.get(column)) for column in columns] for row in rows)
        return "".join(_table_line(row, kind.delimiter) for row in cells)

    return _table_line(columns, kind.delimiter), encode


def cell(value: object) -> str:
    """A value as text; what is missing is empty."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _table_line(cells: Sequence[str], delimiter: str) -> str:
    """One row of a table.

    The writer of Python 3.11 quotes of "\\r" and "\\n" only what is in its own line end, and
    readers end a row at either: it gets both, and the line ends in "\\n" all the same.
    """
    text = StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _json_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _bytes(text: str) -> bytes:
    # What came in as no valid Unicode goes out escaped.
    return text.encode("utf-8", errors="backslashreplace")
