"""POST /v1/completions: OpenAI's definition, with a few extensions."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, SkipValidation

from finlora.api.protocol.body import require
from finlora.api.protocol.fields import MAX_SEQUENCES, Count
from finlora.api.protocol.sampling import SamplingRequest
from finlora.api.protocol.usage import Usage
from finlora.engine.sampling_params import MAX_LOGPROBS

Prompt: TypeAlias = str | list[int]


def _listed_prompts(value: Any) -> Any:
    """One prompt or many, text or token ids, as a list of prompts; None: an empty document."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, token ids, or a list of either, and not empty")
    if _are_token_ids(value):
        return [value]
    if all(isinstance(item, str) for item in value) or all(map(_are_token_ids, value)):
        return value
    raise ValueError("must hold strings only, or lists of token ids only")


def _are_token_ids(value: Any) -> bool:
    # bool is an int to isinstance
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class CompletionRequest(SamplingRequest):
    """The body of POST /v1/completions."""

    refused: ClassVar = {"suffix": "no served base infills"}

    prompt: Annotated[
        list[Annotated[Prompt, SkipValidation]] | None,
        BeforeValidator(_listed_prompts),
        Field(
            max_length=MAX_SEQUENCES,
            description="string, list of strings, token ids, or list of lists of token ids; "
            "without it, or with an empty string: an empty document",
        ),
    ] = None
    max_tokens: Annotated[Count, Field(description="0 needs `echo`")] = 16
    best_of: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_SEQUENCES,
            description="draws, of which the `n` with the highest mean log-probability are kept",
        ),
    ] = None
    echo: Annotated[bool, Field(description="the prompt in front of the text")] = False
    logprobs: Annotated[
        int | None, Field(ge=0, le=MAX_LOGPROBS, description="likeliest tokens to show")
    ] = None

    @property
    def num_candidates(self) -> int:
        """Sequences drawn for each prompt, of which `n` are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens shown with each token; None: no log-probabilities."""
        return self.logprobs

    def check(self) -> None:
        """What no field can tell alone."""
        super().check()
        num_prompts = len(self.prompt or [None])
        require(self.max_tokens > 0 or self.echo, "max_tokens", "may be 0 only with echo")
        require(self.num_candidates >= self.n, "best_of", "must be at least n")
        require(
            not self.stream or self.num_candidates == self.n,
            "best_of",
            "above n cannot be streamed: the best are known at the end",
        )
        require(
            num_prompts * self.num_candidates <= MAX_SEQUENCES,
            "n",
            f"times the number of prompts must be at most {MAX_SEQUENCES}",
        )


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of a choice's tokens; the first prompt token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@dataclass(frozen=True, slots=True)
class ChoiceLogprobs(Logprobs):
    """Those of an answer that is one of some labels, and every label's own, over all labels."""

    choice_logprobs: dict[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence, or the part of it that one chunk of a stream carries."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of POST /v1/completions."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"
