"""Rows to judge by: FinLoRA's test sets, or any file of texts with labels."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from finlora.datasets.building import source_folder
from finlora.datasets.data_files import SUFFIXES, dataset_files
from finlora.datasets.readers import LABELS, READERS, STRENGTHS
from finlora.datasets.row_files import Columns, read_rows
from finlora.datasets.rows import Row, find_labels, first_rows
from finlora.datasets.tasks import FIQA, FPB, NWGI, TFNS, Source
from finlora.errors import ConfigError
from finlora.evaluation.tweet_labels import corrected

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One of FinLoRA's sentiment tests."""

    source: Source
    labels: tuple[str, ...]

    @property
    def file(self) -> str:
        """As FinLoRA names it."""
        return f"{self.source.name}_test.jsonl"


TASKS = {
    task.source.name: task
    for task in (Task(FPB, LABELS), Task(FIQA, LABELS), Task(TFNS, LABELS), Task(NWGI, STRENGTHS))
}


@dataclass(frozen=True, slots=True)
class TestSet:
    """Prompts with the label that is right for each."""

    name: str
    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was done to the rows

    def sample(self, max_rows: int) -> "TestSet":
        """At most so many rows; which ones depends on their texts alone."""
        if len(self.rows) <= max_rows:
            return self
        note = f"{max_rows} of {len(self.rows)} rows, chosen by a hash of their text"
        rows = tuple(first_rows(list(self.rows), max_rows))
        return replace(self, rows=rows, notes=(*self.notes, note))

    @property
    def sha256(self) -> str:
        """Of what is asked and what is right."""
        rows = [row_facts(row) for row in self.rows]
        return hashlib.sha256(json.dumps([self.labels, rows]).encode()).hexdigest()


def row_facts(row: Row) -> list[Any]:
    """What decides the answer to a row and whether it is right, for hashes."""
    return [row.context, row.target, *(astuple(message) for message in row.messages)]


def load_test_set(
    name: str,
    folder: Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    columns: Columns | None = None,
    warn: Warn = lambda _: None,
) -> TestSet:
    """A task by name, or a file. Raises ConfigError.

    A task is read from FinLoRA's file in `folder`, else from its public source; for others see
    `files_of`. A file holds lines of `context` and `target` or of `messages`, or a table whose
    `columns` are named; its labels are those that occur, unless given.
    """
    if is_task(name):
        return _load_task(TASKS[name], folder, warn)
    rows = read_rows(files_of(name, folder), columns)
    known = find_labels(rows, labels)
    if not known:
        raise ConfigError(f"{name}: the answers are no choice of a few labels; name them: --labels")
    return TestSet(Path(name).stem, tuple(rows), tuple(known))


def is_task(name: str) -> bool:
    """Whether a task of this name is meant, and no file."""
    return name in TASKS and not Path(name).is_file()


def files_of(name: str, folder: Path | None) -> list[Path]:
    """The file of this name here, else in `folder`; else a hub data set's. Raises ConfigError."""
    is_here = Path(name).expanduser().is_file()
    return dataset_files([name], Path() if is_here or folder is None else folder)


def refuse_equal_names(test_sets: Sequence[TestSet]) -> None:
    """Raises ConfigError: results go by the names of test sets."""
    names = Counter(test_set.name for test_set in test_sets)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"two test sets are called {twice[0]!r}: rename the file of one")


def _load_task(task: Task, folder: Path | None, warn: Warn) -> TestSet:
    file = _find(task.file, folder)
    if file is not None:
        rows = [replace(row, target=row.target.strip()) for row in read_rows([file])]
    else:
        rows = _from_source(task, folder)
    find_labels(rows, task.labels)  # refuses others
    if task.source is not TFNS:
        return TestSet(task.source.name, tuple(rows), task.labels)
    rows, note = corrected(rows)
    if note is None:
        return TestSet(task.source.name, tuple(rows), task.labels)
    warn(f"{file or task.source.name}: {note}")
    return TestSet(task.source.name, tuple(rows), task.labels, (note,))


def _find(name: str, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    places = (folder / name, folder / "test" / name)
    return next((file for file in places if file.is_file()), None)


def _from_source(task: Task, folder: Path | None) -> list[Row]:
    found = READERS[task.source.name](source_folder(task.source, folder))
    rows = [row for side, row in found if side == "test"]
    if not rows:
        raise ConfigError(f"{task.source.name}: no test rows ({', '.join(SUFFIXES)})")
    return rows
