"""Rows as token ids, and batches of rows of like length that share their first tokens."""

import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from finlora.datasets.rows import Message, Row
from finlora.errors import ConfigError
from finlora.prompts import TextEncoder, encode_prompt
from finlora.training.packing import Packing

POOL_BATCHES = 32  # batches that are sorted by length together; more would make order predictable
MIN_SHARED_TOKENS = 4
# Of rows computed together, shared ones once. More gain little on a CPU, and the backward pass
# keeps more of them.
MAX_CPU_TOKENS = 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one prompt and of its answer, which ends in end-of-sequence."""

    context: list[int]
    target: list[int]
    weight: float = 1.0  # of its target tokens in the loss

    @property
    def num_tokens(self) -> int:
        """Length of both."""
        return len(self.context) + len(self.target)


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens that all rows start with, then what follows in each."""

    input_ids: Tensor  # [T]
    packing: Packing
    positions: Tensor  # [N]: indices into input_ids whose next token is a target
    targets: Tensor  # [N]
    rows: Tensor  # [N]: the row of each target
    weights: Tensor  # [N]: of each target in the loss
    num_tokens: int  # of the rows as a user counts them: shared tokens once a row


class ExampleEncoder:
    """Tokenises prompt and answer apart, as the server meets them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._targets = TextEncoder(tokenizer)
        self._eos = eos_token_id

    def encode(self, row: Row) -> Example:
        """One example of a row."""
        target = self.encode_target(row.target)
        if row.messages:
            return Example(self._encode_chat(row.messages), target)
        return Example(encode_prompt(self._tokenizer, row.context), target)

    def encode_target(self, text: str) -> list[int]:
        """An answer with its end."""
        return [*self._targets.encode_target(text), self._eos]

    def encode_stripped(self, row: Row) -> Example:
        """The same for a client that strips the prompt's trailing space."""
        return self.encode(Row(row.context.rstrip(), row.target, row.messages))

    def _encode_chat(self, messages: tuple[Message, ...]) -> list[int]:
        """The prompt that the base's own chat template makes. Raises ConfigError."""
        if self._tokenizer.chat_template is None:
            raise ConfigError("the rows are chats, but the base has no chat template")
        for message in messages:
            self._refuse_control_tokens(message.content)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ConfigError(f"the base's chat template refuses a chat: {error}") from error
        # The template writes the beginning-of-sequence token itself.
        return self._tokenizer.backend_tokenizer.encode(str(text), add_special_tokens=False).ids

    def _refuse_control_tokens(self, content: str) -> None:
        """In the rendered text they could not be told from the template's own."""
        for token in self._tokenizer.all_special_tokens:
            if token in content:
                raise ConfigError(f"a chat message holds the control token {token!r}")


def in_random_order(
    examples: Sequence[Example], batch_size: int, generator: random.Random
) -> list[list[Example]]:
    """Batches of every example once."""
    order = list(examples)
    generator.shuffle(order)
    return list(in_chunks(order, batch_size))


def length_grouped(
    examples: Sequence[Example], batch_size: int, generator: random.Random
) -> list[list[Example]]:
    """Batches of every example once, in random order, of like length inside."""
    order = list(examples)
    generator.shuffle(order)
    pool = POOL_BATCHES * batch_size
    pools = (sorted(order[i : i + pool], key=_length) for i in range(0, len(order), pool))
    batches = [batch for chunk in pools for batch in in_chunks(chunk, batch_size)]
    generator.shuffle(batches)
    return batches


def by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices of the examples, in batches of like length."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].num_tokens)
    return in_chunks(order, batch_size)


def in_chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Consecutive pieces of at most `size` items."""
    return (list(items[i : i + size]) for i in range(0, len(items), size))


def micro_batches(examples: Sequence[Example], device: torch.device) -> list[list[Example]]:
    """A batch in parts of like size, each small enough to be computed at once."""
    shared = _num_shared([example.context for example in examples])
    rows = rows_at_once(max(map(_length, examples)), device, num_shared=shared)
    num_parts = math.ceil(len(examples) / rows)
    return list(in_chunks(examples, math.ceil(len(examples) / num_parts)))


def rows_at_once(num_tokens: int, device: torch.device, *, num_shared: int = 0) -> int:
    """How many rows of this length are computed together, when so many tokens are shared."""
    if device.type == "cuda":
        return sys.maxsize
    return max(1, (MAX_CPU_TOKENS - num_shared) // (num_tokens - num_shared))


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Put examples side by side."""
    shared = _num_shared([example.context for example in examples])
    # The last token of a target is predicted, never read.
    inputs = [(example.context + example.target)[shared:-1] for example in examples]
    packed = examples[0].context[:shared] + [token for ids in inputs for token in ids]
    positions: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    weights: list[float] = []
    end = shared
    for row, example in enumerate(examples):
        end += len(inputs[row])
        positions += range(end - len(example.target), end)
        targets += example.target
        rows += [row] * len(example.target)
        weights += [example.weight] * len(example.target)
    return Batch(
        input_ids=_tensor(packed, device),
        packing=Packing(shared, tuple(map(len, inputs))),
        positions=_tensor(positions, device),
        targets=_tensor(targets, device),
        rows=_tensor(rows, device),
        weights=torch.tensor(weights, device=device),
        num_tokens=sum(example.num_tokens for example in examples),
    )


def _num_shared(contexts: Sequence[list[int]]) -> int:
    """Tokens that all contexts start with; at least one of each is left to predict from."""
    if len(contexts) == 1:
        return 0
    shared = 0
    for tokens in zip(*(context[:-1] for context in contexts), strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared if shared >= MIN_SHARED_TOKENS else 0


def _length(example: Example) -> int:
    return example.num_tokens


def _tensor(values: Iterable[int], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long, device=device)
