"""What a model answers to a prompt, and who can be asked: the engine here, or a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from finlora.datasets.rows import Message
from finlora.prompts import PromptTemplate

GENERATED_TOKENS = 10  # FinLoRA's own number for sentiment


class Mode(StrEnum):
    """How a label is had from a model."""

    SCORE = "score"  # exact probabilities of all labels, in one pass over the prompt
    GENERATE = "generate"  # FinLoRA's protocol: ten tokens, the first label in them


@dataclass(frozen=True, slots=True)
class Question:
    """One request."""

    model: str
    prompt: str
    labels: tuple[str, ...]  # to score; empty: generate
    messages: tuple[Message, ...] = ()  # of a chat: asked in place of the prompt

    def text_in(self, template: PromptTemplate | None) -> str | None:
        """The text to classify, where labels are scored and this template made the prompt."""
        if template is None or not self.labels or self.messages:
            return None
        return template.extract(self.prompt)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    text: str  # generated; empty when labels were scored
    probabilities: tuple[float, ...]  # of the labels; empty when text was generated
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float  # from being sent to being answered, beside those sent at the same time


class Answerer(Protocol):
    """Answers questions, many at a time."""

    concurrency: int

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """(index, reply) as they come. Raises FinLoRAError when one fails."""

    def describe(self) -> dict[str, str]:
        """What answers, for a report."""
