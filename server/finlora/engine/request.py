"""The engine's vocabulary: a request, its life, and what it gives back."""

import time
from dataclasses import dataclass, field
from enum import StrEnum, auto

from finlora.adapters.adapter import Adapter
from finlora.engine.detokenizer import Detokenizer
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import FinLoRAError


class RequestStatus(StrEnum):
    """Where a request stands; the last four are final."""

    WAITING = auto()
    WAITING_FOR_ADAPTER = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED_STOP = auto()
    FINISHED_LENGTH = auto()
    FINISHED_ABORT = auto()
    FINISHED_ERROR = auto()


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = auto()
    LENGTH = auto()
    ABORT = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and those of the likeliest tokens at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), likeliest first


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What happened to a request since its last output (`stream`), or in all (not `stream`).

    `text` never ends inside a UTF-8 sequence and never contains a stop string. `logprobs` has one
    entry per id of `token_ids` when asked for. `prompt_logprobs` comes once, with the first output;
    its first entry is None. Exactly one output of a request has a `finish_reason`; `error` is set
    with FinishReason.ERROR only. Times are `time.monotonic()` seconds.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id
    error: FinLoRAError | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0  # so far
    num_cached_tokens: int = 0  # of the prompt, taken from the prefix cache


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way through the engine."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    adapter: Adapter | None
    seed: int
    detokenizer: Detokenizer
    eos_token_ids: frozenset[int] = frozenset()
    cache_salt: str = ""
    arrival_time: float = field(default_factory=time.monotonic)
    status: RequestStatus = RequestStatus.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0  # tokens whose keys and values are in the KV cache
    num_cached_tokens: int = 0  # of them, found in the prefix cache at the first start
    num_preemptions: int = 0
    start_time: float | None = None  # first admission
    first_token_time: float | None = None
    last_token_time: float | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    num_emitted_tokens: int = 0  # of the output, given out by earlier RequestOutputs

    @property
    def started(self) -> bool:
        """Whether the request has ever run."""
        return self.start_time is not None

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether log-probabilities of prompt tokens are still to be computed."""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < len(
            self.prompt_token_ids
        )

    def start(self) -> None:
        """The request runs now, for the first time or again."""
        self.status = RequestStatus.RUNNING
        if self.start_time is None:
            self.start_time = time.monotonic()
            self.num_cached_tokens = self.num_computed_tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def digest(self) -> str | None:
        """The adapter's content identity; None for the base."""
        return None if self.adapter is None else self.adapter.digest

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of the positions [start, stop)."""
        num_prompt = len(self.prompt_token_ids)
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        output = self.output_token_ids[max(start - num_prompt, 0) : stop - num_prompt]
        return self.prompt_token_ids[start:num_prompt] + output
