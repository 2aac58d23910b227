"""What clients send and get on /v1: OpenAI's completions, with a few extensions. No torch here.

Every field is bounded; an unknown one is an error that names it.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation, ValidationError

from finlora.engine.sampling_params import MAX_LOGPROBS
from finlora.errors import RequestError

MAX_FIELDS = 64
MAX_SEQUENCES = 128
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 512
MAX_LOGIT_BIASES = 1024
MAX_CHOICES = 256
MAX_CHOICE_CHARACTERS = 512
INT64 = 2**63

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


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _by_token_id(value: Any) -> Any:
    """JSON keys are strings; these are token ids."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_LOGIT_BIASES:
        raise ValueError(f"must have at most {MAX_LOGIT_BIASES} entries")
    if not all(key.isascii() and key.isdigit() and len(key) <= 9 for key in value):
        raise ValueError("keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
StopString: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Label: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARACTERS)]
Labels: TypeAlias = Annotated[list[Label], Field(min_length=1, max_length=MAX_CHOICES)]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class StructuredOutputs(BaseModel):
    """What form an answer must have."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    choice: Labels | None = None


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions. A field that is null is a field that was not sent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1, max_length=256)]
    prompt: Annotated[
        list[Annotated[Prompt, SkipValidation]] | None,
        BeforeValidator(_listed_prompts),
        Field(max_length=MAX_SEQUENCES),
    ] = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Probability = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] = 1
    best_of: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    stop: Annotated[
        list[StopString], BeforeValidator(_listed), Field(max_length=MAX_STOP_STRINGS)
    ] = []
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(ge=-100, le=100)]],
        BeforeValidator(_by_token_id),
    ] = {}
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    suffix: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None

    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = []
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    structured_outputs: StructuredOutputs | None = None
    guided_choice: Labels | None = None

    @property
    def num_candidates(self) -> int:
        """Sequences drawn for each prompt, of which `n` are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def choice(self) -> list[str] | None:
        """The labels of which the answer must be one."""
        return self.structured_outputs.choice if self.structured_outputs else self.guided_choice

    @property
    def choice_param(self) -> str:
        """The field that `choice` comes from."""
        return "structured_outputs" if self.structured_outputs else "guided_choice"

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """The checked request. Raises RequestError that names the offending field in `param`."""
        request = cls._validated(_parse(body))
        request._check()
        return request

    @classmethod
    def _validated(cls, fields: dict[str, Any]) -> Self:
        try:
            return cls.model_validate(_without_nulls(fields))
        except ValidationError as error:
            raise _first_error(error) from error

    def _check(self) -> None:
        """What no field can tell alone."""
        num_prompts = len(self.prompt or [None])
        _require(self.suffix is None, "suffix", "is not supported: no served base infills")
        _require(self.max_tokens > 0 or self.echo, "max_tokens", "may be 0 only with echo")
        _require(self.num_candidates >= self.n, "best_of", "must be at least n")
        _require(
            not self.stream or self.num_candidates == self.n,
            "best_of",
            "above n cannot be streamed: the best are known at the end",
        )
        _require(
            num_prompts * self.num_candidates <= MAX_SEQUENCES,
            "n",
            f"times the number of prompts must be at most {MAX_SEQUENCES}",
        )
        options = self.stream_options
        _require(self.stream or options is None, "stream_options", "needs stream: true")
        _require(
            options is None or not options.include_obfuscation,
            "stream_options",
            "include_obfuscation is not supported: frames are not padded",
        )
        if self.structured_outputs is not None:
            _require(self.choice is not None, "structured_outputs", "must have choice")
        if self.choice is not None:
            self._check_choice(self.choice)

    def _check_choice(self, labels: list[str]) -> None:
        _require(
            self.structured_outputs is None or self.guided_choice is None,
            "guided_choice",
            "cannot be used with structured_outputs, which says the same",
        )
        _require(len({*labels}) == len(labels), self.choice_param, "must not repeat a label")
        for param in ("stop", "stop_token_ids", "ignore_eos"):
            what = f"cannot be used with {self.choice_param}: the answer is a whole label"
            _require(not getattr(self, param), param, what)


def _parse(body: bytes) -> dict[str, Any]:
    # orjson refuses NaN, Infinity, lone surrogates and deep nesting.
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _name_the_field(body)
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    if len(fields) > MAX_FIELDS:
        raise RequestError(f"the body must have at most {MAX_FIELDS} fields")
    return fields


def _name_the_field(body: bytes) -> None:
    """Raises RequestError for the field that holds what JSON has no way to write: NaN, half a pair.

    Python's own parser lets these through, and then the field's bounds do not.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict):
        CompletionRequest._validated(fields)


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _first_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = str(first["loc"][0])[:100]
    if first["type"] == "extra_forbidden":
        return RequestError(f"unknown field: {'.'.join(map(str, first['loc']))[:200]}", param=param)
    what = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{param}: {what}", param=param)


def _require(holds: bool, param: str, what: str) -> None:
    if not holds:
        raise RequestError(f"{param} {what}", param=param)


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
class PromptTokensDetails:
    """Of the prompt's tokens, those taken from the prefix cache."""

    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens a request took; every candidate of `best_of` counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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
