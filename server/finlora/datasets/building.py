"""Makes a task's files: reads its sources, keeps test texts out of the training rows, writes."""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finlora.datasets.data_files import ORIGIN_SUFFIX, hub_snapshot
from finlora.datasets.readers import READERS, Side
from finlora.datasets.rows import Row
from finlora.datasets.tasks import Source, Task
from finlora.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written."""

    files: dict[Side, Path]
    num_rows: dict[Side, int]
    num_overlapping: int  # training rows whose text is also a test row's: left out
    targets: Counter[str]


def prepare(
    task: Task,
    sources: list[Source],
    output: Path,
    local: Path | None,
    report: Callable[[str], None],
) -> Prepared:
    """Write `train/` and `test/` files below `output`. Raises ConfigError, writing nothing."""
    sides: dict[Side, list[Row]] = {"train": [], "test": []}
    for source in sources:
        report(f"{source.name}: {source.title}; licence: {source.licence}")
        before = {side: len(rows) for side, rows in sides.items()}
        for side, row in READERS[source.name](
            source_folder(source, local, is_only_one=len(task.sources) == 1)
        ):
            sides[side].append(row)
        counts = (f"{len(rows) - before[side]} to {side}" for side, rows in sides.items())
        report(f"{source.name}: {', '.join(counts)}")
    if not all(sides.values()):
        raise ConfigError("the sources gave no rows")
    tested = {row.text for row in sides["test"]}
    train = [row for row in sides["train"] if row.text not in tested]
    num_overlapping = len(sides["train"]) - len(train)
    random.Random(0).shuffle(train)
    files: dict[Side, Path] = {
        "train": output / "train" / task.train_file,
        "test": output / "test" / task.test_file,
    }
    _write(files["train"], train, sources)
    _write(files["test"], sides["test"], sources)
    counts_by_side: dict[Side, int] = {"train": len(train), "test": len(sides["test"])}
    return Prepared(files, counts_by_side, num_overlapping, Counter(row.target for row in train))


def source_folder(source: Source, local: Path | None, *, is_only_one: bool = False) -> Path:
    """Where a source's own files are: below `local`, or fetched. Raises ConfigError."""
    if local is None:
        if source.hub is None:
            raise ConfigError(f"{source.name} is on no hub: --from FOLDER with {source.needs}")
        return hub_snapshot(source.hub)
    own = local / source.name
    folder = local if is_only_one and not own.is_dir() else own
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; it should hold {source.needs}")
    return folder


def _write(file: Path, rows: list[Row], sources: list[Source]) -> None:
    """Whole or not at all; who the rows are from, beside them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"context": row.context, "target": row.target}) for row in rows)
    _replace(file, "\n".join(lines) + "\n")
    origin: list[dict[str, Any]] = [
        {"name": source.title, "licence": source.licence, "url": source.url} for source in sources
    ]
    _replace(file.with_name(file.name + ORIGIN_SUFFIX), json.dumps(origin, indent=1) + "\n")


def _replace(file: Path, text: str) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_text(text, "utf-8")
        os.replace(aside, file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
