"""From a configuration to the examples of a run: read, split, tokenised, counted."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from finlora.errors import ConfigError
from finlora.training.batches import Example, ExampleEncoder
from finlora.training.config import TrainingConfig, dataset_files
from finlora.training.rows import (
    Row,
    Split,
    file_hash,
    find_labels,
    first_rows,
    read_rows,
    split_given,
    split_rows,
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The rows of a run."""

    files: list[Path]
    split: Split
    labels: list[str]  # empty: the task is not a choice

    def sources(self) -> list[dict[str, Any]]:
        """Name and hash of every file, for the manifest."""
        return [{"file": file.name, "sha256": file_hash(file)} for file in self.files]


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenised training rows, both ways, and what had to be left out."""

    whole: list[Example]
    stripped: list[Example]  # prompts without their trailing space
    num_too_long: int

    @property
    def max_tokens(self) -> int:
        """Length of the longest row."""
        return max(example.num_tokens for example in self.whole)

    def of_epoch(self, epoch: int, config: TrainingConfig) -> list[Example]:
        """Every row once; some as a client sends it who strips the prompt's end."""
        generator = random.Random(f"{config.seed}/strip/{epoch}")
        return [
            stripped if generator.random() < config.strip_probability else whole
            for whole, stripped in zip(self.whole, self.stripped, strict=True)
        ]


def load_dataset(config: TrainingConfig, folder: Path) -> Dataset:
    """Read and split the rows; relative paths count from `folder`. Raises ConfigError."""
    if not config.dataset_path:
        raise ConfigError("no data: give dataset_path in the file or --set dataset_path=FILE")
    files = dataset_files(config.dataset_path, folder)
    rows = read_rows(files)
    if config.val_dataset_path:
        given = dataset_files(config.val_dataset_path, folder)
        files += given
        split = split_given(rows, read_rows(given))
    else:
        split = split_rows(rows, config.val_fraction)
    labels = find_labels([*split.train, *split.valid], config.label_names)
    if config.max_rows is not None:
        sample = first_rows(split.train, config.max_rows)
        split = Split(sample, split.valid, split.num_duplicates)
    if not split.train or not split.valid:
        raise ConfigError(
            f"{len(split.train)} rows to train on and {len(split.valid)} to validate with: "
            "both are needed"
        )
    return Dataset(files, split, labels)


def encode_rows(rows: list[Row], encoder: ExampleEncoder, config: TrainingConfig) -> Examples:
    """Tokenise rows; those longer than max_seq_len are left out whole, never cut."""
    encoded = [(encoder.encode(row), encoder.encode_stripped(row)) for row in rows]
    kept = [pair for pair in encoded if pair[0].num_tokens <= config.max_seq_len]
    if not kept:
        raise ConfigError(f"every row is longer than max_seq_len={config.max_seq_len} tokens")
    whole, stripped = zip(*kept, strict=True)
    return Examples(list(whole), list(stripped), len(encoded) - len(kept))


def eos_token_id(tokenizer: PreTrainedTokenizerFast, stop_ids: tuple[int, ...]) -> int:
    """The token that answers end in: the tokenizer's own where the server stops at it."""
    own: int | None = tokenizer.eos_token_id
    if own is not None and (own in stop_ids or not stop_ids):
        return own
    if not stop_ids:
        raise ConfigError("the base names no end-of-sequence token: answers could not end")
    return stop_ids[0]
