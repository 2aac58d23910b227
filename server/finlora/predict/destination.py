"""Where labelled rows go, and whether they may: nothing is overwritten or mixed up by accident."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finlora.errors import ConfigError
from finlora.predict.columns import AddedColumns
from finlora.predict.formats import STANDARD_STREAM, Format
from finlora.predict.journal import Journal
from finlora.predict.outputs import (
    Output,
    ParquetOutput,
    StreamOutput,
    TextOutput,
    begin_anew,
    encoder,
)
from finlora.predict.parquet import ParquetSource, import_pyarrow, text_schema, with_columns
from finlora.predict.sources import Source


@dataclass(frozen=True, slots=True)
class Destination:
    """An output and the input it belongs to."""

    path: Path
    kind: Format
    input_path: Path
    input_kind: Format
    overwrite: bool = False  # what is there goes, once something is sure to take its place

    @property
    def columns_are_fixed(self) -> bool:
        """Whether all rows must have the columns of the first; only JSON lines may differ."""
        return self.kind is not Format.JSONL

    def prepare(self) -> None:
        """Everything that can be said before a model is loaded. Raises ConfigError."""
        if self.kind is Format.PARQUET:
            import_pyarrow(self.path)
        if self.path == STANDARD_STREAM:
            return
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path.parent} is no folder; create it first")
        if self.path.exists() and self.input_path.exists() and self.path.samefile(self.input_path):
            raise ConfigError(f"{self.path} is the input; name another file with -o")
        if self.overwrite:
            return
        journal = Journal(self.path)
        journal.check_free()
        if self.input_path == STANDARD_STREAM and journal.exists():
            raise ConfigError(
                f"{self.path} is unfinished, and standard input cannot be read again from where "
                "it ended; --overwrite begins anew"
            )

    def open(
        self, source: Source, column: str, added: AddedColumns, identity: dict[str, Any]
    ) -> Output:
        """The output, behind what an interrupted run left. Raises ConfigError."""
        added.check(source.columns)
        columns = [*source.columns, *added.kinds]
        if self.path == STANDARD_STREAM:
            return StreamOutput(*encoder(self.kind, columns))
        task = {
            "input": self._input_identity(),
            "text column": column,
            "prefix": added.prefix,
            "format": self.kind.value,
            **identity,
        }
        if self.overwrite:
            begin_anew(self.path)
        journal = Journal(self.path)
        if self.kind is not Format.PARQUET:
            return TextOutput(self.path, *encoder(self.kind, columns), journal, task)
        if isinstance(source, ParquetSource):
            schema, as_text = source.schema, frozenset[str]()
        else:
            schema, as_text = text_schema(source.columns), frozenset(source.columns)
        schema = with_columns(schema, added.kinds)
        return ParquetOutput(self.path, schema, journal, task, as_text=as_text)

    def _input_identity(self) -> list[Any]:
        if self.input_path == STANDARD_STREAM:
            return ["-"]
        stat = self.input_path.stat()
        return [str(self.input_path.resolve()), stat.st_size, stat.st_mtime_ns]
