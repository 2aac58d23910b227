"""Reads training rows from JSON lines, CSV and Parquet; a bad row names its file and line."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finlora.datasets.rows import Message, Row
from finlora.errors import ConfigError
from finlora.prompts import PromptTemplate

ASSISTANT = "assistant"

T = TypeVar("T", bound=BaseModel)


class _FinLoRALine(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    context: str = Field(min_length=1)
    target: str = Field(min_length=1)


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: str = Field(min_length=1)
    content: str


class _ChatLine(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    messages: list[_Message] = Field(min_length=2)


@dataclass(frozen=True, slots=True)
class Columns:
    """How a table's columns become prompts and answers."""

    text: str
    label: str
    template: PromptTemplate
    values: dict[str, str] = field(default_factory=dict)  # in the label column -> answer


@dataclass(frozen=True, slots=True)
class _Record:
    fields: Any
    where: str


def read_rows(files: Iterable[Path], columns: Columns | None = None) -> list[Row]:
    """Rows of files. Raises ConfigError naming file and line of the first bad row."""
    rows = [_row(record, columns) for file in files for record in read_records(file)]
    if not rows:
        raise ConfigError("the data has no rows")
    return rows


def read_records(file: Path) -> Iterator[_Record]:
    """What stands in a file, line by line, of whatever form. Raises ConfigError."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    try:
        yield from readers.get(file.suffix.lower(), _read_json_lines)(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text") from error


def _read_json_lines(file: Path) -> Iterator[_Record]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}:{number}"
                yield _Record(_parse_json(line, where), where)


def _parse_json(line: str, where: str) -> Any:
    try:
        fields = json.loads(line)
        if "\\u" in line:  # half of a pair is JSON, but no text: nothing could encode it
            json.dumps(fields, ensure_ascii=False).encode()
        return fields
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not a JSON object ({error})") from error


def _read_csv(file: Path) -> Iterator[_Record]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            _check_header(reader.fieldnames or (), f"{file}:1")
            for fields in reader:
                where = f"{file}:{reader.line_num}"
                if None in fields:  # a comma that is not quoted has moved the others
                    num_cells = len(reader.fieldnames or ())
                    raise ConfigError(f"{where}: more cells than the header's {num_cells}")
                yield _Record(fields, where)
        except csv.Error as error:
            raise ConfigError(f"{file}:{reader.line_num}: not CSV ({error})") from error


def _check_header(names: Sequence[str], where: str) -> None:
    """Of two columns with one name the last would count; columns without a name are not asked."""
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            raise ConfigError(f"{where}: {count} columns are called {name!r}")


def _read_parquet(file: Path) -> Iterator[_Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{file.name} needs pyarrow: pip install 'finlora[train]', or convert it to CSV"
        ) from error
    try:
        with parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield _Record(fields, f"{file} row {number}")
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{file} is not Parquet: {error}") from error


def _row(record: _Record, columns: Columns | None) -> Row:
    if columns is not None:
        row = _row_of_columns(record, columns)
    elif isinstance(record.fields, dict) and "messages" in record.fields:
        row = _row_of_chat(record)
    else:
        line = _checked(_FinLoRALine, record)
        row = Row(line.context, line.target)
    if not row.target.strip():
        raise ConfigError(f"{record.where}: the target is empty")
    return row


def _row_of_columns(record: _Record, columns: Columns) -> Row:
    text, label = (_cell(record, name) for name in (columns.text, columns.label))
    if columns.values and label not in columns.values:
        raise ConfigError(f"{record.where}: label {label!r} is not among label_values")
    return Row(columns.template.render(text), columns.values.get(label, label))


def _cell(record: _Record, name: str) -> str:
    value = record.fields.get(name) if isinstance(record.fields, dict) else None
    if value is None or str(value).strip() == "":
        known = ", ".join(map(str, record.fields)) if isinstance(record.fields, dict) else "none"
        raise ConfigError(f"{record.where}: column {name!r} is empty or missing (there: {known})")
    return str(value)


def _row_of_chat(record: _Record) -> Row:
    messages = _checked(_ChatLine, record).messages
    if messages[-1].role != ASSISTANT:
        raise ConfigError(f"{record.where}: the last message must be the assistant's")
    asked = tuple(Message(message.role, message.content) for message in messages[:-1])
    context = "\n".join(message.content for message in asked)
    return Row(context, messages[-1].content, asked)


def _checked(model: type[T], record: _Record) -> T:
    try:
        return model.model_validate(record.fields)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
        raise ConfigError(f"{record.where}: {reason}") from error
