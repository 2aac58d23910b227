"""Parquet in and out. pyarrow is imported here only, and only when it is needed."""

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finlora.errors import ConfigError
from finlora.predict.rows import Row

ROWS_AT_ONCE = 1024
PARTS_IN_A_GROUP = 64  # row groups of some ten thousand rows


class ParquetSource:
    """Rows of a Parquet file, a batch at a time."""

    def __init__(self, path: Path) -> None:
        arrow = import_pyarrow(path)
        if not path.is_file():
            raise ConfigError(f"{path} cannot be read: there is no such file")
        try:
            self._file = arrow.parquet.ParquetFile(path)
        except arrow.ArrowException as error:
            raise ConfigError(f"{path} is not Parquet: {error}") from error
        self._path = path
        self._num_rows: int = self._file.metadata.num_rows
        self._num_read = 0
        self.schema = self._file.schema_arrow
        self.columns: list[str] = self.schema.names

    def rows(self) -> Iterator[Row]:
        """All rows."""
        for batch in self._file.iter_batches(batch_size=ROWS_AT_ONCE):
            for fields in batch.to_pylist():
                self._num_read += 1
                yield Row(f"{self._path} row {self._num_read}", fields)

    def fraction(self) -> float | None:
        """By rows."""
        return self._num_read / self._num_rows if self._num_rows else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


class ParquetParts:
    """Chunks of rows as files of their own in a folder, and what becomes of them at the end."""

    def __init__(self, folder: Path, schema: Any) -> None:
        self._folder = folder
        self._schema = schema

    def write(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """A part, on disk when this returns."""
        arrow = import_pyarrow(self._folder)
        self._folder.mkdir(exist_ok=True)
        try:
            table = arrow.Table.from_pylist(list(rows), schema=self._schema)
        except arrow.ArrowException as error:
            raise ConfigError(f"rows that do not fit Parquet's columns: {error}") from error
        self._write([table], self._part(number))

    def has_all(self, num_parts: int) -> bool:
        """Whether the first `num_parts` are there."""
        return all(self._part(number).is_file() for number in range(num_parts))

    def join(self, num_parts: int, target: Path) -> None:
        """All parts as one file; the folder goes."""
        arrow = import_pyarrow(target)
        parts = iter(range(num_parts))
        groups = iter(lambda: list(islice(parts, PARTS_IN_A_GROUP)), [])

        def read(number: int) -> Any:
            return arrow.parquet.read_table(self._part(number), schema=self._schema)

        tables = (arrow.concat_tables(map(read, group)) for group in groups)
        self._write(tables, target)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:08}.parquet"

    def _write(self, tables: Any, target: Path) -> None:
        arrow = import_pyarrow(target)
        aside = target.with_name(f"{target.name}.new")
        with aside.open("wb") as file:
            with arrow.parquet.ParquetWriter(file, self._schema) as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)


def text_schema(columns: Sequence[str]) -> Any:
    """Columns of text, for rows from a file without types."""
    arrow = import_pyarrow(Path("columns"))
    return arrow.schema([(name, arrow.string()) for name in columns])


def with_columns(schema: Any, columns: dict[str, type]) -> Any:
    """More columns, of text or numbers."""
    arrow = import_pyarrow(Path("columns"))
    kinds = {str: arrow.string(), float: arrow.float64()}
    for name, kind in columns.items():
        schema = schema.append(arrow.field(name, kinds[kind]))
    return schema


def import_pyarrow(path: Path) -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path.name} needs pyarrow: pip install 'finlora[train]', or use CSV or JSON lines"
        ) from error
    return pyarrow
