"""What runs in one step: the vocabulary that scheduler, runner and engine share."""

from collections.abc import Sequence
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
class Branch:
    """A label's token to score: node of the tree, row of the page table, place in its text."""

    node: int
    row: int
    position: int


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """New tokens [start, start + num_tokens) of one running request."""

    running: Running
    start: int
    num_tokens: int
    samples: bool  # whether the step's logits behind the last new token are wanted
    node: int = 0  # of the labels' tree; not 0: the new token is a branch, the row its own

    @property
    def decodes(self) -> bool:
        """Whether the new token is one that was generated, not a part of the prompt."""
        return self.num_tokens == 1 and self.start >= len(self.request.prompt_token_ids)

    @property
    def request(self) -> Request:
        """The request."""
        return self.running.request

    @property
    def token_ids(self) -> list[int]:
        """The new tokens."""
        choice = self.request.params.choice
        if self.node and choice is not None:
            return [choice.token_id(self.node)]
        return self.request.tokens(self.start, self.start + self.num_tokens)

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether the logits of every new token are wanted."""
        return not self.node and self.request.needs_prompt_logits


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: sequences that decode come first, each part is sorted by slot."""

    sequences: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of the packed batch."""
        return sum(sequence.num_tokens for sequence in self.sequences)

    @property
    def requests(self) -> list[Request]:
        """Whose sequences these are, each once."""
        return list(dict.fromkeys(sequence.request for sequence in self.sequences))


class BatchBuilder:
    """A batch that is being put together, and the room that is left in it."""

    def __init__(self, num_tokens: int, num_logits_rows: int, num_branches: int) -> None:
        self.chosen: list[ScheduledSequence] = []
        self._num_tokens = num_tokens
        self._num_logits_rows = num_logits_rows
        self._num_branches = num_branches

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
        if request.needs_prompt_logits:
            fitting = min(fitting, self._num_logits_rows)
        num_text_tokens = max(num_tokens - request.num_branches, 0)
        num_branches = min(self._num_branches, self._num_logits_rows - (num_text_tokens > 0))
        return min(fitting, num_text_tokens + num_branches) if request.num_branches else fitting

    def take(self, running: Running, num_tokens: int, branches: Sequence[Branch] = ()) -> None:
        """Use up the room; the last of the tokens are the branches."""
        request = running.request
        start, num_text_tokens = request.num_computed_tokens, num_tokens - len(branches)
        if num_text_tokens:
            samples = start + num_text_tokens == request.num_text_tokens
            self.chosen.append(ScheduledSequence(running, start, num_text_tokens, samples))
        for branch in branches:
            own = Running(request, branch.row, running.slot)
            self.chosen.append(
                ScheduledSequence(own, branch.position, 1, samples=True, node=branch.node)
            )
        self._num_tokens -= num_tokens
        self._num_branches -= len(branches)
        num_rows = len(branches) + (num_text_tokens > 0)
        self._num_logits_rows -= num_tokens if request.needs_prompt_logits else num_rows

    def build(self) -> Batch:
        """The batch, in the order that attention and LoRA ask for."""
        ordered = sorted(self.chosen, key=lambda s: (not s.decodes, s.running.slot))
        return Batch(tuple(ordered))


def num_missing_tokens(request: Request) -> int:
    """Tokens of the request that are not in the KV cache yet, branches included."""
    return request.num_tokens - request.num_computed_tokens
