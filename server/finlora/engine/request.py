"""The engine's vocabulary: a request, its life, and what it gives back."""

import time
from dataclasses import dataclass, field
from enum import StrEnum, auto

from finlora.adapters.adapter import Adapter
from finlora.engine.constraints import Constraint
from finlora.engine.detokenizer import Detokenizer
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import END, NodeScores
from finlora.errors import FinLoRAError


class RequestStatus(StrEnum):
    """Where a request stands; the last five are final."""

    WAITING = auto()
    WAITING_FOR_ADAPTER = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED_STOP = auto()
    FINISHED_LENGTH = auto()
    FINISHED_ABORT = auto()
    FINISHED_ERROR = auto()
    FINISHED_REFUSED = auto()


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = auto()
    LENGTH = auto()
    ABORT = auto()
    ERROR = auto()
    REFUSED = auto()  # an error that is the client's fault, seen on the way only


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
    its first entry is None. `choice_logprobs` comes with the last output when labels are scored:
    the log-probability of each label and its end token, not renormalised. Exactly one output of a
    request has a `finish_reason`; `error` is set with FinishReason.ERROR and REFUSED only.
    Times are `time.monotonic()` seconds.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    choice_logprobs: tuple[float, ...] | None = None
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
    end_token_id: int | None = None  # what ends a label of `params.choice`
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
    choice_scores: dict[int, NodeScores] = field(default_factory=dict)  # by node of the tree
    constraint: Constraint | None = None  # of an answer that must be a text of a grammar
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

    def append(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Add a token to the output."""
        self.output_token_ids.append(token_id)
        if logprob is not None:
            self.logprobs.append(logprob)

    @property
    def num_tokens(self) -> int:
        """Tokens to run: prompt and output so far, then the branches of labels to score."""
        return self.num_text_tokens + self.num_branches

    @property
    def num_text_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_branches(self) -> int:
        """Tokens of labels to score. They run behind the prompt; no text follows them."""
        return self.params.num_branches

    def branch_columns(self, start: int, num_tokens: int) -> dict[int, list[int]]:
        """The branches among the tokens [start, start + num_tokens): node -> its path's columns.

        A branch's keys and values lie behind the text in the request's row, one column per node.
        """
        choice, num_text_tokens = self.params.choice, self.num_text_tokens
        if choice is None or not self.num_branches:
            return {}
        before_first = num_text_tokens - 1  # nodes are counted from 1
        stop = start + num_tokens
        nodes = range(max(start, num_text_tokens) - before_first, stop - before_first)
        return {node: [before_first + n for n in choice.path(node)] for node in nodes}

    def allowed_token_ids(self, node: int) -> list[int]:
        """Tokens that may follow a node of the labels' tree."""
        assert self.params.choice is not None
        assert self.end_token_id is not None
        ends = {END: self.end_token_id}
        return [ends.get(token_id, token_id) for token_id in self.params.choice.allowed(node)]

    def allowed_by_grammar(self) -> bytearray:
        """For each token, whether it may come next (0: no); end tokens where the answer may end.

        Raises InvalidSamplingParamsError when the grammar takes too much to go on.
        """
        assert self.constraint is not None
        allowed = self.constraint.allowed()
        if self.constraint.may_end:
            # An adapter's manifest may name ids that this base does not have.
            for token_id in self.eos_token_ids:
                if 0 <= token_id < len(allowed):
                    allowed[token_id] = 1
        return allowed

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
