"""Headline prompts of which none repeats, so that no prefix cache ever answers a whole prompt."""

import json
import random
import re
import string
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

INPUT = "Input: "


def read_contexts(file: Path) -> list[str]:
    """The distinct `context` fields of a JSONL file in FinLoRA's row format."""
    lines = file.read_text(encoding="utf-8").splitlines()
    contexts = [json.loads(line)["context"] for line in lines if line.strip()]
    if not contexts:
        raise ValueError(f"{file} holds no rows")
    return list(dict.fromkeys(contexts))


def fresh_prompts(contexts: list[str], count: int, *, offset: int = 0, seed: int = 0) -> list[str]:
    """Prompts `offset` to `offset + count` of one endless, repeatable sequence without repeats."""
    return list(islice(_endless(contexts, seed), offset, offset + count))


class PromptSource:
    """Prompts for a whole run, of which no two are the same.

    All of them are variants (another company, other figures), also the first ones: rounds that
    began with the rows as they stand would be shorter than those after them.
    """

    def __init__(self, contexts: list[str], seed: int = 0) -> None:
        self._rng = random.Random(seed)
        rows = contexts.copy()
        self._rng.shuffle(rows)
        self._rows = cycle(rows)
        self._seen = set(rows)

    def blocks(self, count: int, num_blocks: int = 1) -> list[list[str]]:
        """Blocks of `count` prompts over the same rows, so that they differ little in length."""
        rows = list(islice(self._rows, count))
        return [[self._fresh(row) for row in rows] for _ in range(num_blocks)]

    def endless(self) -> Iterator[str]:
        """One prompt after another."""
        return map(self._fresh, self._rows)

    def endless_apart(self) -> Iterator[str]:
        """The same, no two of them with a beginning in common that a prefix cache could serve."""
        return (f"{_company(self._rng)}: {prompt}" for prompt in self.endless())

    def _fresh(self, row: str) -> str:
        while (variant := _vary(row, self._rng)) in self._seen:
            continue
        self._seen.add(variant)
        return variant


def _endless(contexts: list[str], seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    rows = contexts.copy()
    rng.shuffle(rows)
    seen = set(rows)
    yield from rows
    while True:
        for row in rows:
            variant = _vary(row, rng)
            if variant not in seen:
                seen.add(variant)
                yield variant


def _vary(context: str, rng: random.Random) -> str:
    """The same headline about another company, with other figures.

    The name comes first: a cached prefix ends where two prompts differ.
    """
    instruction, marker, headline = context.partition(INPUT)
    company = _company(rng)
    figures = re.sub(r"\d", lambda _: rng.choice(string.digits), headline)
    return f"{instruction}{marker}{company}: {figures}" if marker else f"{company}: {context}"


def _company(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=5))
