"""Rows that are questions: tags of numbers, pages of reports, formulas, multiple choice."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from finlora.datasets.rows import Row
from finlora.errors import ConfigError

QUESTIONS_PER_ROW = 4
MAX_TAGS_PER_SENTENCE = 3
NO_TAG = ("O", "-", "0")
CHOICES = ("A", "B", "C", "D")


def text_of(fields: Any, name: str, where: str) -> str:
    """A column that must not be empty. Raises ConfigError."""
    value = fields.get(name) if isinstance(fields, dict) else None
    if value is None or not str(value).strip():
        raise ConfigError(f"{where}: column {name!r} is empty or missing")
    return str(value)


def tag_names(files: Iterable[Path]) -> list[str]:
    """Names behind the numbers of `ner_tags`, where a Parquet file carries them; else none."""
    for file in files:
        if file.suffix == ".parquet":
            from pyarrow import parquet

            facts = (parquet.read_schema(file).metadata or {}).get(b"huggingface")
            if facts is not None:
                features = json.loads(facts)["info"]["features"]
                column = features["ner_tags"].get("feature") or features["ner_tags"]
                return list(column.get("names", []))
    return []


def finer_rows(sentences: Iterable[tuple[Any, str]], names: list[str]) -> Iterator[Row]:
    """The tags of four numbers a row, out of all tags that there are."""
    asked = [entity for fields, where in sentences for entity in _entities(fields, where, names)]
    options = ",".join(sorted({tag for _, tag in asked}))
    entities = iter(asked)
    while four := list(islice(entities, QUESTIONS_PER_ROW)):
        numbered = "\n".join(f"{i}. {question}" for i, (question, _) in enumerate(four, start=1))
        context = (
            f"You are XBRL expert. Here is a list of US GAAP tags options: {options}. "
            f"Answer the following {len(four)} independent questions by providing only "
            f"{len(four)} US GAAP tags answers in the order of the questions. Each answer must be "
            f"separated by a comma (,). Provide nothing else.\n{numbered}\nOutput US GAAP tags:"
        )
        yield Row(context, ",".join(tag for _, tag in four))


def _entities(fields: Any, where: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Question and answer for the first tagged words of a sentence."""
    if not isinstance(fields, dict) or not {"tokens", "ner_tags"} <= fields.keys():
        raise ConfigError(f"{where}: columns tokens and ner_tags are needed")
    words, tags = fields["tokens"], [_tag(tag, where, names) for tag in fields["ner_tags"]]
    if len(words) != len(tags):
        raise ConfigError(f"{where}: {len(words)} tokens and {len(tags)} tags")
    sentence = " ".join(words)
    tagged = ((word, tag) for word, tag in zip(words, tags, strict=True) if tag not in NO_TAG)
    for word, tag in islice(tagged, MAX_TAGS_PER_SENTENCE):
        question = f'What is best tag for entity "{word}" in sentence: "{sentence}?"'
        yield question, tag.partition("-")[2] or tag


def _tag(tag: str | int, where: str, names: list[str]) -> str:
    if isinstance(tag, str):
        return tag
    if tag == 0:
        return "O"
    if tag >= len(names):
        raise ConfigError(f"{where}: tag number {tag} has no name in the file's own metadata")
    return names[tag]


def financebench_row(fields: Any, where: str) -> Row:
    """A question with the full pages of its evidence."""
    question, answer = (text_of(fields, name, where) for name in ("question", "answer"))
    evidence = fields.get("evidence")
    if not isinstance(evidence, list) or not evidence:
        raise ConfigError(f"{where}: column 'evidence' is empty or missing")
    pages = "\n".join(
        f"Page {page.get('evidence_page_num')}:\n"
        f"{page.get('evidence_text_full_page') or page.get('evidence_text')}\n"
        for page in evidence
    )
    return Row(
        "Answer the following question very briefly using scanned text from pages. No explanation "
        f"needed. Question: {question}\nDocument Pages Context:\n{pages}\nAnswer:",
        answer,
    )


def formula_rows(fields: Any, where: str) -> Iterator[tuple[int, Row]]:
    """Number and row of every question of one formula."""
    name, formula, meaning = (
        text_of(fields, key, where) for key in ("Formula Name", "Formula", "Explanation")
    )
    number = 1
    while f"Question {number}" in fields:
        question, answer = (fields.get(f"{kind} {number}") for kind in ("Question", "Answer"))
        if question is not None and answer is not None:
            context = (
                f"Use formula {name} to answer the question. Answer with a numerical answer with 2 "
                f"decimal places and with no explanations or other text. Formula: {formula}, "
                f"Explanation: {meaning}. Question: {_without_number(str(question))}. Answer:"
            )
            yield number, Row(context, str(answer).strip())
        number += 1


def _without_number(question: str) -> str:
    """The source writes `1. "..."`."""
    number, dot, rest = question.partition(".")
    return rest.strip() if dot and number.strip().isdigit() else question.strip()


def choice_row(fields: Any, where: str) -> Row:
    """A question whose answer is a letter."""
    answer = text_of(fields, "answer", where).strip().upper()
    given = [letter for letter in CHOICES if str(fields.get(letter) or "").strip()]
    if answer not in given:
        raise ConfigError(f"{where}: answer {answer!r} is none of {', '.join(given) or 'A, B, C'}")
    options = "\n".join(f"{letter}. {fields[letter]}" for letter in given)
    case = f"{fields['context']}\n" if fields.get("context") else ""
    return Row(
        f"Instruction: Answer the exam question with one letter out of {{{'/'.join(given)}}}.\n"
        f"Input: {case}{text_of(fields, 'question', where)}\n{options}\nAnswer: ",
        answer,
    )
