"""From each source's own files to FinLoRA rows, on the side of the split that it has there.

A source without a split of its own is split by a hash of the text.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

from finlora.datasets import questions
from finlora.datasets.data_files import table_files
from finlora.datasets.row_files import read_records
from finlora.datasets.rows import Row, position
from finlora.datasets.xbrl import filing_facts
from finlora.errors import ConfigError
from finlora.prompts import instruction_template, sentiment_template

Side = Literal["train", "test"]
Rows = Iterator[tuple[Side, Row]]

LABELS = ("negative", "neutral", "positive")
STRENGTHS = (
    "strong negative", "moderately negative", "mildly negative", "neutral",
    "mildly positive", "moderately positive", "strong positive",
)  # fmt: skip
TFNS_LABELS = {"0": "negative", "1": "positive", "2": "neutral"}  # bearish, bullish, neutral
FPB_TEST_SHARE = 0.25
TERM_TEST_SHARE = 0.1
FINANCEBENCH_TEST_SHARE = 1 / 3
# What zipfile and openpyxl raise of files that are cut, damaged, encrypted or none of theirs.
BROKEN = (
    zipfile.BadZipFile, zlib.error, ParseError, EOFError, OSError, LookupError, RuntimeError,
    ValueError,
)  # fmt: skip
NUM_TRAIN_QUESTIONS = 16  # of the 20 of every formula


def read_fpb(folder: Path) -> Rows:
    """Lines `sentence@label` in Latin-1."""
    template = sentiment_template("news", LABELS)
    # Not splitlines(): in Latin-1 it also breaks at byte 0x85, an ellipsis of Windows.
    for number, line in enumerate(_fpb_text(folder).rstrip("\r\n").split("\n"), start=1):
        text, at, label = line.rstrip("\r").rpartition("@")
        if not at or label not in LABELS:
            raise ConfigError(f"Sentences_50Agree.txt:{number}: not `sentence@label`")
        yield _by_hash(Row(template.render(text), label), FPB_TEST_SHARE)


def read_fiqa(folder: Path) -> Rows:
    """Scores from -1 to 1; within 0.1 of zero is neutral."""
    for side, fields, where in _split_tables(folder):
        kind = "tweet" if "post" in _text(fields, "type", where) else "news"
        score = _number(_text(fields, "score", where), where)
        label = "negative" if score < -0.1 else "neutral" if score < 0.1 else "positive"
        text = _text(fields, "sentence", where)
        yield side, Row(sentiment_template(kind, LABELS).render(text), label)


def read_tfns(folder: Path) -> Rows:
    """Labels by the official coding; FinLoRA's own file has neutral and positive swapped."""
    template = sentiment_template("tweet", LABELS)
    for side, fields, where in _split_tables(folder, {"train": ["train"], "test": ["valid"]}):
        label = TFNS_LABELS.get(_text(fields, "label", where))
        if label is None:
            raise ConfigError(f"{where}: the label is none of 0, 1, 2")
        yield side, Row(template.render(_text(fields, "text", where)), label)


def read_nwgi(folder: Path) -> Rows:
    """Seven strengths."""
    template = sentiment_template("news", STRENGTHS)
    for side, fields, where in _split_tables(folder):
        label = _text(fields, "label", where)
        if label not in STRENGTHS:
            raise ConfigError(f"{where}: label {label!r} is none of {', '.join(STRENGTHS)}")
        yield side, Row(template.render(_text(fields, "news", where)), label)


def read_instructions(folder: Path) -> Rows:
    """Columns instruction, input, output."""
    for side, fields, where in _split_tables(folder):
        template = instruction_template(_text(fields, "instruction", where))
        target = _text(fields, "output", where)
        yield side, Row(template.render(_text(fields, "input", where)), target)


def read_finer(folder: Path) -> Rows:
    """Words with tags; four questions a row."""
    files = _side_files(folder, {"train": ["train"], "test": ["test"]})
    names = questions.tag_names(file for found in files.values() for file in found)
    for side, found in files.items():
        sentences = (
            (record.fields, record.where) for file in found for record in read_records(file)
        )
        for row in questions.finer_rows(sentences, names):
            yield side, row


def read_xbrl_extract(folder: Path) -> Rows:
    """The question with the facts of the filing's context that it is about."""
    for side, fields, where in _split_tables(folder):
        document = folder / "DowJones30" / _text(fields, "doc_path", where)
        facts = filing_facts(document, _text(fields, "context_id", where))
        instruction, question = (_text(fields, name, where) for name in ("instruction", "input"))
        context = f"{instruction}\nXML File: {facts}\n{question}"
        yield side, Row(context, _text(fields, "output", where))


def read_xbrl_term(folder: Path) -> Rows:
    """Terms and what they mean."""
    for fields, where in _any_table(folder):
        term, meaning = _text(fields, "Term", where), _text(fields, "Explanation", where)
        context = f"Explain this XBRL term briefly in one sentence: {term}. Answer:"
        yield _by_hash(Row(context, meaning), TERM_TEST_SHARE)


def read_financebench(folder: Path) -> Rows:
    """Questions with the pages that answer them."""
    for fields, where in _any_table(folder):
        row = questions.financebench_row(fields, where)
        yield _by_hash(row, FINANCEBENCH_TEST_SHARE)


def read_formula(folder: Path) -> Rows:
    """The first questions of every formula are for training, the last for testing."""
    for fields, where in _any_table(folder):
        for number, row in questions.formula_rows(fields, where):
            yield "train" if number <= NUM_TRAIN_QUESTIONS else "test", row


def read_cfa(folder: Path) -> Rows:
    """Multiple choice."""
    for fields, where in _any_table(folder):
        yield _by_hash(questions.choice_row(fields, where), FPB_TEST_SHARE)


READERS: dict[str, Callable[[Path], Rows]] = {
    "fpb": read_fpb,
    "fiqa": read_fiqa,
    "tfns": read_tfns,
    "nwgi": read_nwgi,
    "headline": read_instructions,
    "ner": read_instructions,
    "finer": read_finer,
    "xbrl_extract": read_xbrl_extract,
    "xbrl_term": read_xbrl_term,
    "financebench": read_financebench,
    "formula": read_formula,
    "cfa": read_cfa,
}

BOTH_SIDES = {"train": ["train"], "test": ["test"]}


def _fpb_text(folder: Path) -> str:
    for file in folder.rglob("Sentences_50Agree.txt"):
        return file.read_text("latin-1")
    for file in folder.rglob("*.zip"):
        with _told(file), zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if Path(name).name == "Sentences_50Agree.txt" and "__MACOSX" not in name:
                    return archive.read(name).decode("latin-1")
    raise ConfigError(f"{folder} has no Sentences_50Agree.txt")


def _split_tables(
    folder: Path, words: dict[str, list[str]] | None = None
) -> Iterator[tuple[Side, Any, str]]:
    for side, files in _side_files(folder, words or BOTH_SIDES).items():
        for file in files:
            for record in read_records(file):
                yield side, record.fields, record.where


def _side_files(folder: Path, words: dict[str, list[str]]) -> dict[Side, list[Path]]:
    sides: dict[Side, list[Path]] = {"train": [], "test": []}
    for side, found in sides.items():
        found += [file for word in words[side] for file in table_files(folder, word)]
        if not found:
            raise ConfigError(f"{folder} has no table with {words[side][0]!r} in its name")
    return sides


def _any_table(folder: Path) -> Iterator[tuple[Any, str]]:
    if files := table_files(folder, None):
        for file in files:
            for record in read_records(file):
                yield record.fields, record.where
        return
    if not (books := sorted(folder.rglob("*.xlsx"))):
        raise ConfigError(f"{folder} has no table (.parquet, .jsonl, .csv, .xlsx)")
    for book in books:
        yield from _read_book(book)


def _read_book(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise ConfigError(f"{file.name} needs openpyxl: pip install 'finlora[train]'") from error
    with _told(file):
        book = load_workbook(io.BytesIO(file.read_bytes()), read_only=True, data_only=True)
        lines = list(book.worksheets[0].iter_rows(values_only=True))
    names = [str(name) for name in lines[0]] if lines else []
    for number, cells in enumerate(lines[1:], start=2):
        fields = dict(zip(names, cells, strict=False))
        if any(cell is not None for cell in cells):
            yield fields, f"{file} row {number}"


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Whatever is wrong with an archive becomes a ConfigError that names it."""
    try:
        yield
    except BROKEN as error:
        raise ConfigError(f"{file} is broken: {error}") from error


def _by_hash(row: Row, test_share: float) -> tuple[Side, Row]:
    return ("test" if position(row) < test_share else "train"), row


def _text(fields: Any, name: str, where: str) -> str:
    return questions.text_of(fields, name, where)


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is not a number") from error
