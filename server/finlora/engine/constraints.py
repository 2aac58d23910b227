"""Answers that must be of some form: what the engine asks of a grammar, whoever implements it."""

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # requests are checked before torch is there
    from torch import Tensor


class GrammarKind(StrEnum):
    """What a grammar is written in."""

    REGEX = "regex"
    JSON = "json"  # a JSON schema
    LARK = "lark"


class Constraint(Protocol):
    """The form of one answer, as far as it has been written."""

    @property
    def may_end(self) -> bool:
        """Whether what there is so far is a whole answer."""

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""

    def allowed(self) -> "Tensor":
        """Tokens that may come next: bool [vocabulary], on the CPU; end tokens are left out.

        Raises InvalidSamplingParamsError when the grammar takes too much to go on.
        """

    def consume(self, token_id: int) -> None:
        """Add an allowed token. Raises InvalidSamplingParamsError as `allowed` does."""

    def forced(self) -> list[int]:
        """Tokens that can only follow now; they are consumed."""


class Grammar(Protocol):
    """The form that answers must have; shared by all requests that ask for it."""

    def start(self) -> Constraint:
        """For one answer, from its beginning. Safe from any thread."""
