"""What runs in one step: the vocabulary that scheduler, runner and engine share."""

from dataclasses import dataclass

from finlora.engine.request import Request

NO_SLOT = -1


@dataclass(slots=True)
class Running:
    """A request with a row of the page table and, if it has an adapter, a pinned slot."""

    request: Request
    row: int
    slot: int


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """New tokens [start, start + num_tokens) of one running request."""

    running: Running
    start: int
    num_tokens: int
    samples: bool  # whether the step gives the request its next token

    @property
    def decodes(self) -> bool:
        """Whether the new token is one that was generated, not a part of the prompt."""
        return self.num_tokens == 1 and self.start >= len(self.request.prompt_token_ids)

    @property
    def request(self) -> Request:
        """The request."""
        return self.running.request


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: sequences that decode come first, each part is sorted by slot."""

    sequences: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of the packed batch."""
        return sum(sequence.num_tokens for sequence in self.sequences)


class BatchBuilder:
    """A batch that is being put together, and the room that is left in it."""

    def __init__(self, num_tokens: int, num_logits_rows: int) -> None:
        self.chosen: list[ScheduledSequence] = []
        self._num_tokens = num_tokens
        self._num_logits_rows = num_logits_rows

    @property
    def has_room(self) -> bool:
        """Whether another token fits."""
        return self._num_tokens > 0 and self._num_logits_rows > 0

    def fit(self, request: Request) -> int:
        """How many of the request's missing tokens fit."""
        return self._limit(request, num_missing_tokens(request))

    def holds(self, request: Request, num_tokens: int) -> bool:
        """Whether that many tokens of the request fit."""
        return self._limit(request, num_tokens) == num_tokens

    def _limit(self, request: Request, num_tokens: int) -> int:
        fitting = min(num_tokens, self._num_tokens)
        if self._num_logits_rows == 0:
            return 0
        return min(fitting, self._num_logits_rows) if request.needs_prompt_logits else fitting

    def take(self, running: Running, num_tokens: int) -> None:
        """Use up the room."""
        start = running.request.num_computed_tokens
        samples = num_tokens == num_missing_tokens(running.request)
        self.chosen.append(ScheduledSequence(running, start, num_tokens, samples))
        self._num_tokens -= num_tokens
        self._num_logits_rows -= num_tokens if running.request.needs_prompt_logits else 1

    def build(self) -> Batch:
        """The batch, in the order that attention and LoRA ask for."""
        ordered = sorted(self.chosen, key=lambda s: (not s.decodes, s.running.slot))
        return Batch(tuple(ordered))


def num_missing_tokens(request: Request) -> int:
    """Tokens of the request that are not in the KV cache yet."""
    return request.num_tokens - request.num_computed_tokens
