"""What POST /v1/chat/completions answers."""

from dataclasses import dataclass
from typing import Literal

from finlora.api.protocol.usage import Usage


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass(frozen=True, slots=True)
class ContentLogprob(TopLogprob):
    """A token of the answer and what else was likely in its place."""

    top_logprobs: list[TopLogprob]


@dataclass(frozen=True, slots=True)
class ChatLogprobs:
    """Log-probabilities of an answer's tokens."""

    content: list[ContentLogprob]
    refusal: None = None


@dataclass(frozen=True, slots=True)
class LabelledChatLogprobs(ChatLogprobs):
    """Those of an answer that is one of some labels, and every label's own, over all labels."""

    choice_logprobs: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The message that the model wrote."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True, slots=True)
class ChatChunkChoice:
    """The part of an answer that one chunk of a stream carries."""

    index: int
    delta: dict[str, str]
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The answer of POST /v1/chat/completions."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
