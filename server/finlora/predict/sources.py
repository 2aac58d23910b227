"""Reads rows one after the other; what cannot be read is a row with a problem, not an end."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from finlora.errors import ConfigError
from finlora.predict.formats import STANDARD_STREAM, Format
from finlora.predict.parquet import ParquetSource
from finlora.predict.rows import Row


class Source(Protocol):
    """Where rows come from."""

    columns: list[str]  # of a JSON-lines file those of its first row

    def rows(self) -> Iterator[Row]:
        """All rows; once."""

    def fraction(self) -> float | None:
        """How much was read, 0 to 1; None: nobody knows how much there is."""


class _Lines:
    """A text file and how far it was read."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.name = "stdin" if path == STANDARD_STREAM else str(path)
        self._stream = stream
        self._num_bytes = 0 if path == STANDARD_STREAM else path.stat().st_size
        # What is no UTF-8 becomes lone surrogates: the row that has them is bad, not the file.
        self.text = TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )

    def fraction(self) -> float | None:
        """By bytes."""
        return self._stream.tell() / self._num_bytes if self._num_bytes else None


class CsvSource:
    """A table with a heading."""

    def __init__(self, lines: _Lines, delimiter: str) -> None:
        self.fraction = lines.fraction
        self._name = lines.name
        self._reader = csv.reader(lines.text, delimiter=delimiter, strict=True)
        self.columns = self._heading()

    def rows(self) -> Iterator[Row]:
        """Every line but the heading and empty ones."""
        while True:
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(self._where(), problem=f"not CSV: {error}")
                continue
            if fields:
                yield self._row(fields)

    def _row(self, fields: list[str]) -> Row:
        known = dict(zip(self.columns, fields, strict=False))
        if len(fields) == len(self.columns):
            return Row(self._where(), known)
        problem = f"{len(fields)} fields where the heading has {len(self.columns)}"
        return Row(self._where(), known, problem)

    def _where(self) -> str:
        return f"{self._name}:{self._reader.line_num}"

    def _heading(self) -> list[str]:
        try:
            columns = next(self._reader, None)
        except csv.Error as error:
            raise ConfigError(f"{self._where()}: not CSV: {error}") from error
        if not columns:
            raise ConfigError(f"{self._name} is empty: the first line must name the columns")
        if len({*columns}) < len(columns):
            raise ConfigError(f"{self._where()}: two columns have the same name")
        return columns


class JsonLinesSource:
    """An object a line."""

    def __init__(self, lines: _Lines) -> None:
        self.fraction = lines.fraction
        self._name = lines.name
        self._lines = enumerate(lines.text, start=1)
        self._first: list[Row] = []
        self.columns = self._first_columns()

    def rows(self) -> Iterator[Row]:
        """Every line but empty ones."""
        yield from self._first
        yield from self._rest()

    def _first_columns(self) -> list[str]:
        """Those of the first good row."""
        for row in self._rest():
            self._first.append(row)
            if row.problem is None:
                return list(row.fields)
            if len(self._first) == 1000:
                break
        raise ConfigError(f"{self._name} does not begin with lines of JSON objects")

    def _rest(self) -> Iterator[Row]:
        for number, line in self._lines:
            if line.strip():
                yield self._row(f"{self._name}:{number}", line.rstrip("\r\n"))

    def _row(self, where: str, line: str) -> Row:
        try:
            fields: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Row(where, problem=f"not JSON: {error}: {line:.200}")
        if not isinstance(fields, dict):
            return Row(where, problem=f"not a JSON object: {line:.200}")
        return Row(where, fields)


@contextmanager
def open_source(path: Path, kind: Format) -> Iterator[Source]:
    """The rows of a file, or of standard input. Raises ConfigError."""
    try:
        if kind is Format.PARQUET:
            with ParquetSource(path) as source:
                yield source
            return
        with path.open("rb") if path != STANDARD_STREAM else sys.stdin.buffer as stream:
            lines = _Lines(path, stream)
            is_json = kind is Format.JSONL
            yield JsonLinesSource(lines) if is_json else CsvSource(lines, kind.delimiter)
    except OSError as error:
        if error.filename is None or Path(error.filename) != path:
            raise
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
