"""Answers that must be of some form: what the engine asks of a grammar, whoever implements it."""

from enum import StrEnum
from typing import Protocol


class GrammarKind(StrEnum):
    """What a grammar is written in."""

    REGEX = "regex"
    JSON = "json"  # a JSON schema
    LARK = "lark"


class Constraint(Protocol):
    """The form of one answer, as far as it has been written.

    The methods raise InvalidSamplingParamsError when the grammar takes too much work to go on.
    """

    @property
    def may_end(self) -> bool:
        """Whether what there is so far is a whole answer."""

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""

    def allowed(self) -> bytearray:
        """For each token of the vocabulary, whether it may come next (0: no); 0 for end tokens."""

    def consume(self, token_id: int) -> None:
        """Add an allowed token."""

    def forced(self) -> list[int]:
        """Tokens that can only follow now; they are consumed."""


class Grammar(Protocol):
    """The form that answers must have; shared by all requests that ask for it."""

    def start(self) -> Constraint:
        """For one answer, from its beginning. Safe from any thread."""
