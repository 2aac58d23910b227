"""From a configuration to the examples of a run: read, split, tokenised, counted."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerFast

from finlora.datasets.data_files import ORIGIN_SUFFIX, dataset_files, file_hash
from finlora.datasets.row_files import Columns, read_rows
from finlora.datasets.rows import (
    Row,
    Split,
    find_labels,
    first_rows,
    split_given,
    split_rows,
)
from finlora.errors import ConfigError
from finlora.training.batches import Example, ExampleEncoder
from finlora.training.config import DataSource, TrainingConfig

NONE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Dataset:
    """The rows of a run."""

    files: list[Path]
    split: Split
    labels: list[str]  # empty: the task is not a choice
    origins: list[DataSource]
    valid_files: list[Path] = field(default_factory=list)  # none: split by hash

    def sources(self) -> list[dict[str, Any]]:
        """Name and hash of every file, for the manifest."""
        learned = [_source(file) for file in self.files]
        return learned + [_source(file) | {"held_out": True} for file in self.valid_files]

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Rows of each label on both sides of the split."""
        counts = self.split.label_counts(self.labels)
        return {label: {"train": train, "valid": valid} for label, (train, valid) in counts.items()}


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenised training rows, both ways, and what had to be left out."""

    whole: list[Example]
    stripped: list[Example]  # prompts without their trailing space
    rows: list[Row]  # what they were made of
    num_too_long: int

    @property
    def max_tokens(self) -> int:
        """Length of the longest row."""
        return max(example.num_tokens for example in self.whole)

    def of_epoch(self, epoch: int, config: TrainingConfig) -> list[Example]:
        """Every row once; some as a client sends it who strips the prompt's end.

        With balanced sampling as many rows, every label as often: rows are drawn anew.
        """
        generator = random.Random(f"{config.seed}/strip/{epoch}")
        chosen = [
            stripped if generator.random() < config.strip_probability else whole
            for whole, stripped in zip(self.whole, self.stripped, strict=True)
        ]
        if not config.balanced_sampling:
            return chosen
        sizes = Counter(row.target for row in self.rows)
        weights = [1 / sizes[row.target] for row in self.rows]
        return random.Random(f"{config.seed}/balance/{epoch}").choices(
            chosen, weights, k=len(chosen)
        )


def load_dataset(config: TrainingConfig, folder: Path) -> Dataset:
    """Read and split the rows; relative paths count from `folder`. Raises ConfigError."""
    if not config.dataset_path:
        raise ConfigError("no data: give dataset_path in the file or --set dataset_path=FILE")
    columns = _columns(config)
    files = dataset_files(config.dataset_path, folder)
    valid_files = dataset_files(config.val_dataset_path, folder)
    rows = read_rows(files, columns)
    if valid_files:
        split = split_given(rows, read_rows(valid_files, columns))
    else:
        split = split_rows(rows, config.val_fraction)
    # In no order of their own: an evaluation looks at the first of them.
    split = replace(split, valid=first_rows(split.valid, len(split.valid)))
    labels = find_labels([*split.train, *split.valid], config.label_names)
    if config.max_rows is not None:
        sample = first_rows(split.train, config.max_rows)
        split = replace(split, train=sample)
    if not split.train or not split.valid:
        raise ConfigError(
            f"{len(split.train)} rows to train on and {len(split.valid)} to validate with: "
            "both are needed"
        )
    origins = config.sources or _origins([*files, *valid_files])
    return Dataset(files, split, labels, origins, valid_files)


def _source(file: Path) -> dict[str, Any]:
    return {"file": file.name, "sha256": file_hash(file)}


def _origins(files: list[Path]) -> list[DataSource]:
    """Who the rows are from, where `finlora data prepare` wrote it beside the files."""
    notes = (file.with_name(file.name + ORIGIN_SUFFIX) for file in files)
    try:
        return [
            DataSource.model_validate(origin)
            for note in notes
            if note.is_file()
            for origin in json.loads(note.read_bytes())
        ]
    except ValueError as error:
        raise ConfigError(f"what stands beside the data is broken: {error}") from error


def _columns(config: TrainingConfig) -> Columns | None:
    """How a table becomes rows; None: the files hold prompts and answers. Raises ConfigError."""
    given = (config.text_column, config.label_column)
    if given == (None, None):
        return None
    if config.text_column is None or config.label_column is None or config.template is None:
        raise ConfigError("text_column, label_column and prompt_template go together")
    return Columns(
        config.text_column, config.label_column, config.template, dict(config.label_values)
    )


def encode_rows(
    rows: list[Row], encoder: ExampleEncoder, max_tokens: int, weights: Mapping[str, float] = NONE
) -> Examples:
    """Tokenise rows; those longer than `max_tokens` are left out whole, never cut."""
    whole, stripped, kept = [], [], []
    for row in rows:
        example = replace(encoder.encode(row), weight=weights.get(row.target, 1.0))
        if example.num_tokens > max_tokens:
            continue
        whole.append(example)
        stripped.append(replace(encoder.encode_stripped(row), weight=example.weight))
        kept.append(row)
    if not whole:
        raise ConfigError(
            f"every row is longer than max_seq_len={max_tokens} tokens (or than the base takes)"
        )
    return Examples(whole, stripped, kept, len(rows) - len(whole))


def answer_weights(rows: list[Row], config: TrainingConfig) -> dict[str, float]:
    """Weight of an answer's rows in the loss; "balanced": inversely to how often it is.

    As scikit-learn has it: the rows' mean weight is 1. Raises ConfigError for unknown answers.
    """
    if isinstance(config.class_weights, dict):
        if unknown := sorted(config.class_weights.keys() - {row.target for row in rows}):
            raise ConfigError(f"class_weights: no row has the answer {unknown[0]!r}")
        return dict(config.class_weights)
    if config.class_weights == "none":
        return {}
    counts = Counter(row.target for row in rows)
    return {answer: len(rows) / (len(counts) * count) for answer, count in counts.items()}


def eos_token_id(tokenizer: PreTrainedTokenizerFast, stop_ids: tuple[int, ...]) -> int:
    """The token that answers end in: the tokenizer's own where the server stops at it."""
    own: int | None = tokenizer.eos_token_id
    if own is not None and (own in stop_ids or not stop_ids):
        return own
    if not stop_ids:
        raise ConfigError("the base names no end-of-sequence token: answers could not end")
    return stop_ids[0]
