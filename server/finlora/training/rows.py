"""Training rows: read from JSON lines, checked, without duplicates, split by a hash of the text."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finlora.errors import ConfigError

FINLORA_INPUT = re.compile(r"Input: (?P<text>.*)\nAnswer:\s*\Z", re.DOTALL)
MAX_LABELS = 32


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    context: str = Field(min_length=1)
    target: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its answer, as FinLoRA writes them."""

    context: str
    target: str

    @property
    def text(self) -> str:
        """What the row is about: without the instruction around it, case and spacing."""
        found = FINLORA_INPUT.search(self.context)
        text = found["text"] if found else self.context
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to judge by; no text is in both."""

    train: list[Row]
    valid: list[Row]
    num_duplicates: int


def read_rows(files: Iterable[Path]) -> list[Row]:
    """Rows of JSON-lines files. Raises ConfigError naming file and line of the first bad row."""
    rows = [row for file in files for row in _read_file(file)]
    if not rows:
        raise ConfigError("the data has no rows")
    return rows


def split_rows(rows: list[Row], valid_fraction: float) -> Split:
    """Split by text alone, so that a text stays on its side when rows are added or reordered."""
    unique = _unique(rows)
    held_out = [row for row in unique if _position(row) < valid_fraction]
    train = [row for row in unique if _position(row) >= valid_fraction]
    return Split(train, held_out, len(rows) - len(unique))


def split_given(train: list[Row], valid: list[Row]) -> Split:
    """A split somebody else made; texts of the validation rows are taken out of the others."""
    valid_rows = _unique(valid)
    held_out = {row.text for row in valid_rows}
    kept = [row for row in _unique(train) if row.text not in held_out]
    return Split(kept, valid_rows, len(train) + len(valid) - len(kept) - len(valid_rows))


def first_rows(rows: list[Row], max_rows: int) -> list[Row]:
    """A sample that depends on the texts alone, not on their order."""
    return sorted(rows, key=_position, reverse=True)[:max_rows]


def find_labels(rows: list[Row], names: Iterable[str] | None) -> list[str]:
    """The answers to choose from; empty when the task is not a choice.

    Raises ConfigError for a target outside the given names, or when there is nothing to choose.
    """
    counts = Counter(row.target for row in rows)
    if names is not None:
        labels = list(names)
        if unknown := sorted(counts.keys() - set(labels)):
            raise ConfigError(f"target {unknown[0]!r} is none of the labels {', '.join(labels)}")
    elif len(counts) <= MAX_LABELS and len(counts) * 4 <= max(len(rows), 8):
        labels = sorted(counts)
    else:
        return []
    if len(counts) < 2:
        raise ConfigError(f"every row has the target {next(iter(counts))!r}: nothing to learn")
    return labels


def file_hash(file: Path) -> str:
    """SHA-256 of a data file, for the manifest."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read_file(file: Path) -> Iterator[Row]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse(line, f"{file}:{number}")


def _parse(line: str, where: str) -> Row:
    try:
        parsed = _Line.model_validate(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {_reason(error)}") from error
    if not parsed.target.strip():
        raise ConfigError(f"{where}: the target is empty")
    return Row(parsed.context, parsed.target)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
    return f"not a JSON object ({error})"


def _unique(rows: list[Row]) -> list[Row]:
    """The first row of each text."""
    return list({row.text: row for row in reversed(rows)}.values())[::-1]


def _position(row: Row) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int(hashlib.sha256(row.text.encode()).hexdigest()[:13], 16) / 16**13
