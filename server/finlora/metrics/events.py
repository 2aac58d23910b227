"""What the engine tells about a sequence that ended, in plain numbers and strings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One sequence from arrival to end; times are `time.monotonic()` seconds, None: not reached."""

    request_id: str
    adapter: str | None  # registered name; None: the base
    digest: str | None
    labels: Sequence[str]  # that the adapter was trained to answer with
    reason: str
    error: str | None  # class of the error that ended it
    error_text: str | None
    text: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    arrival_time: float
    start_time: float | None
    first_token_time: float | None
    last_token_time: float | None
    end_time: float = field(default_factory=time.monotonic)
    is_withdrawn: bool = False  # aborted because another sequence of its request failed

    @property
    def num_served_prompt_tokens(self) -> int:
        """None of a prompt that never ran."""
        return 0 if self.start_time is None else self.num_prompt_tokens

    @property
    def queue_seconds(self) -> float | None:
        """Arrival to the first step."""
        return _between(self.arrival_time, self.start_time)

    @property
    def prefill_seconds(self) -> float | None:
        """First step to first token."""
        return _between(self.start_time, self.first_token_time)

    @property
    def first_token_seconds(self) -> float | None:
        """Arrival to first token."""
        return _between(self.arrival_time, self.first_token_time)

    @property
    def decode_seconds(self) -> float | None:
        """First token to last token."""
        return _between(self.first_token_time, self.last_token_time)

    @property
    def mean_token_seconds(self) -> float | None:
        """Between one token and the next; one token alone has no next."""
        if self.decode_seconds is None or self.num_output_tokens < 2:
            return None
        return self.decode_seconds / (self.num_output_tokens - 1)

    @property
    def seconds(self) -> float:
        """Arrival to end."""
        return self.end_time - self.arrival_time

    @property
    def phase(self) -> str:
        """Where it stood when it ended."""
        if self.start_time is None:
            return "queue"
        return "prefill" if self.first_token_time is None else "decode"


RequestListener = Callable[[FinishedRequest], None]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
