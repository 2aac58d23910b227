"""Sums over the whole server, which outlive the adapters that they were counted for."""

from prometheus_client import Counter

from finlora.metrics.adapter_series import REASONS
from finlora.metrics.events import FinishedRequest


class Totals:
    """Shown under vLLM's names only: under ours, a query adds up the adapters.

    They are not the sums of the adapters' series: those of a removed adapter disappear, and a
    counter that falls looks as if the process had begun anew.
    """

    def __init__(self) -> None:
        self.requests = Counter("requests", "Sequences that ended", ["reason"], registry=None)
        self.prompt_tokens = Counter("prompt_tokens", "Prompt tokens served", registry=None)
        self.cached_tokens = Counter(
            "prompt_tokens_cached", "Of these, from the prefix cache", registry=None
        )
        self.output_tokens = Counter("output_tokens", "Tokens generated", registry=None)
        for reason in REASONS:
            self.requests.labels(reason)

    def finished(self, event: FinishedRequest) -> None:
        """A sequence ended."""
        self.requests.labels(event.reason).inc()
        self.prompt_tokens.inc(event.num_served_prompt_tokens)
        self.cached_tokens.inc(event.num_cached_tokens)
        self.output_tokens.inc(event.num_output_tokens)
