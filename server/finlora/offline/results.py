"""What the engine in this process answers."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from finlora.errors import FinLoRAError

# A text to be answered, or why there is none in its place.
Text: TypeAlias = str | FinLoRAError


@dataclass(frozen=True, slots=True)
class Completion:
    """The text that follows a prompt."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The likeliest label of a text, and the probability of every label (they add up to 1)."""

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """That of the likeliest label."""
        return self.probabilities[self.label]
