"""Unlabelled text as token sequences of one length."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from finlora.datasets.row_files import read_records
from finlora.datasets.rows import FINLORA_INPUT
from finlora.errors import ConfigError
from finlora.prompts import TextEncoder

FIELDS = ("text", "context", "sentence", "content")
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts to learn from and texts to judge by; none is in both."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def sha256(self) -> str:
        """Of both sides."""
        return hashlib.sha256(json.dumps([self.train, self.held_out]).encode()).hexdigest()


def load_corpus(files: Sequence[Path], held_out: Sequence[Path]) -> Corpus:
    """Read both sides, the second a tenth of the first where no file is named.

    A `.txt` file holds texts between empty lines; JSON lines, CSV and Parquet have them in a field
    called text, context (the input of FinLoRA's prompts), sentence or content. Raises ConfigError.
    """
    train = list(dict.fromkeys(_texts(files)))
    if held_out:
        judged = list(dict.fromkeys(_texts(held_out)))
    else:
        judged = [text for text in train if _position(text) < HELD_OUT_SHARE]
    known = set(judged)
    kept = sorted((text for text in train if text not in known), key=_position)
    if not kept or not judged:
        raise ConfigError(
            f"{len(kept)} texts to learn from and {len(judged)} to judge by: both are needed"
        )
    return Corpus(tuple(kept), tuple(sorted(judged, key=_position)))


def pack(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    eos: int,
    *,
    length: int,
    max_sequences: int,
) -> Tensor:
    """[at most max_sequences, length]: texts end to end, an end token between two.

    Raises ConfigError when there is not enough text for one sequence.
    """
    encoder = TextEncoder(tokenizer)
    tokens: list[int] = []
    for text in texts:
        tokens += [*encoder.encode_target(text), eos]
        if len(tokens) >= length * max_sequences:
            break
    num = min(len(tokens) // length, max_sequences)
    if num == 0:
        raise ConfigError(f"{len(tokens)} tokens of text are less than one sequence of {length}")
    return torch.tensor(tokens[: num * length]).view(num, length)


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        if file.suffix == ".txt":
            yield from filter(None, map(str.strip, _read(file).split("\n\n")))
        else:
            yield from (_text(record.fields, record.where) for record in read_records(file))


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _text(fields: Any, where: str) -> str:
    found = next((fields[n] for n in FIELDS if isinstance(fields, dict) and n in fields), None)
    if not isinstance(found, str) or not found.strip():
        raise ConfigError(f"{where}: no text in a field called {', '.join(FIELDS)}")
    prompt = FINLORA_INPUT.search(found)
    return prompt["text"] if prompt else found


def _position(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
