"""The kinds of files that rows stand in."""

from enum import StrEnum
from pathlib import Path

from finlora.errors import ConfigError

STANDARD_STREAM = Path("-")


class Format(StrEnum):
    """How rows are written down."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"

    @property
    def delimiter(self) -> str:
        """Between the fields of a line."""
        return "\t" if self is Format.TSV else ","


SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
}


def format_of(path: Path, given: Format | None, option: str) -> Format:
    """By what was said, else by the file's suffix; CSV on standard streams. Raises ConfigError."""
    chosen = given or (Format.CSV if path == STANDARD_STREAM else SUFFIXES.get(path.suffix.lower()))
    if chosen is None:
        known = ", ".join(SUFFIXES)
        raise ConfigError(f"{path}: the suffix is none of {known}; say the format with {option}")
    if chosen is Format.PARQUET and path == STANDARD_STREAM:
        raise ConfigError(f"Parquet is not a stream: name a file, or choose another {option}")
    return chosen
