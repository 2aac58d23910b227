"""Tables of the documentation have one header and rows of its width; links lead to files."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

FOLDERS = (".", "docs", "loadtest", "deploy", "examples", "adapters_registry")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.md"))
OF_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))

SEPARATOR = re.compile(r"\|( ?:?-+:? ?\|)+")
CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def tables(text: str) -> Iterator[list[str]]:
    """Each run of neighbouring lines that begin with a bar."""
    fenceless = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for found in re.finditer(r"(?:^\|.*\n?)+", fenceless, re.MULTILINE):
        yield found[0].splitlines()


def width(row: str) -> int:
    """Cells of a row; a bar that is escaped or part of code divides none."""
    return CODE.sub("", row).replace(r"\|", "").count("|") - 1


@OF_FILE
def test_tables_have_one_header_and_rows_of_its_width(file: Path) -> None:
    for header, separator, *rows in tables(file.read_text("utf-8")):
        assert SEPARATOR.fullmatch(separator), header
        assert not [row for row in rows if SEPARATOR.fullmatch(row)], header
        assert not [row for row in (separator, *rows) if width(row) != width(header)], header


@OF_FILE
def test_links_between_files_lead_somewhere(file: Path) -> None:
    for found in LINK.finditer(file.read_text("utf-8")):
        assert (file.parent / found[1]).exists(), found[0]
