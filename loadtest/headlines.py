"""Headlines to ask about, shuffled and never the same twice, so that no prefix cache knows them.

What a cache can share is what it shares in earnest: the instruction in front of the headline.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.peers.prompts import INPUT, PromptSource

DEFAULT_FILE = Path("examples/news_headlines.jsonl")
INSTRUCTION = (
    "Instruction: What is the sentiment of this news? "
    "Please choose an answer from {negative/neutral/positive}.\n"
)
ANSWER = "\nAnswer: "
INPUT_FIELD = "{input}"  # where /v1/classify puts the text


@dataclass(frozen=True, slots=True)
class Headline:
    """A text, and what stands around it in the form of prompt that adapters are trained on."""

    before: str
    text: str
    after: str

    @property
    def prompt(self) -> str:
        """What asks about the text."""
        return self.before + self.text + self.after

    @property
    def template(self) -> str:
        """The same for any text."""
        return self.before + INPUT_FIELD + self.after


def read_prompts(file: Path) -> list[str]:
    """Distinct prompts: rows with a `context` of a .jsonl file, else one headline a line.

    Raises LoadTestError.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        read = _context if file.suffix == ".jsonl" else _prompt
        prompts = [read(line) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadTestError(f"cannot read headlines from {file}: {error!r}") from error
    if not prompts:
        raise LoadTestError(f"{file} holds no headline")
    return list(dict.fromkeys(prompts))


def headlines(prompts: list[str], seed: int) -> Iterator[Headline]:
    """Without end: the prompts in another order for every seed, each time with another company."""
    return map(_headline, PromptSource(prompts, seed).endless())


def _context(line: str) -> str:
    return str(json.loads(line)["context"])


def _prompt(line: str) -> str:
    return f"{INSTRUCTION}{INPUT}{line.strip()}{ANSWER}"


def _headline(prompt: str) -> Headline:
    before, marker, rest = prompt.rpartition(INPUT)
    text, answer, after = rest.partition(ANSWER)
    return Headline(before + marker, text, answer + after)
