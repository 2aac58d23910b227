"""Sequences, from arrival to their last token: where their time went, and how long they were."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from finlora.metrics import buckets
from finlora.metrics.events import FinishedRequest

PHASES = ("queue", "prefill", "decode")


class SequenceSeries:
    """Not by adapter: a histogram for each of a thousand names would be megabytes a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, edges: Sequence[float]) -> Histogram:
            return Histogram(f"finlora_{name}", text, buckets=edges, registry=registry)

        seconds, tokens, between = buckets.REQUEST, buckets.REQUEST_TOKENS, buckets.INTER_TOKEN
        self._queue = histogram("request_queue_seconds", "Arrival to first step", seconds)
        self._prefill = histogram("request_prefill_seconds", "First step to first token", seconds)
        self._first_token = histogram(
            "time_to_first_token_seconds", "Arrival to first token", buckets.FIRST_TOKEN
        )
        self._decode = histogram("request_decode_seconds", "First token to last token", seconds)
        self._whole = histogram("request_seconds", "Arrival to end of a sequence", seconds)
        self._between_tokens = histogram(
            "inter_token_seconds", "Time between two tokens of a sequence", between
        )
        self._mean_token = histogram(
            "request_mean_token_seconds", "Mean time between the tokens of a sequence", between
        )
        self._prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a sequence", tokens
        )
        self._output_tokens = histogram(
            "request_output_tokens", "Tokens generated for a sequence", tokens
        )
        self.preemptions = Counter(
            "finlora_preemptions", "Sequences put back for lack of KV pages", registry=registry
        )
        self._disconnects = Counter(
            "finlora_disconnects",
            "Sequences whose client left, by phase",
            ["phase"],
            registry=registry,
        )
        for phase in PHASES:
            self._disconnects.labels(phase)

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """All of them."""
        return (*self._stages, self._between_tokens, self._prompt_tokens, self._output_tokens)

    @property
    def _stages(self) -> tuple[Histogram, ...]:
        return (
            self._queue,
            self._prefill,
            self._first_token,
            self._decode,
            self._mean_token,
            self._whole,
        )

    def finished(self, event: FinishedRequest) -> None:
        """A sequence ended."""
        stages = (
            event.queue_seconds,
            event.prefill_seconds,
            event.first_token_seconds,
            event.decode_seconds,
            event.mean_token_seconds,
            event.seconds,
        )
        for histogram, seconds in zip(self._stages, stages, strict=True):
            if seconds is not None:
                histogram.observe(seconds)
        self._prompt_tokens.observe(event.num_prompt_tokens)
        self._output_tokens.observe(event.num_output_tokens)
        if event.reason == "abort" and not event.is_withdrawn:
            self._disconnects.labels(event.phase).inc()

    def token_emitted(self, seconds: float) -> None:
        """A sequence got a token so long after its previous one."""
        self._between_tokens.observe(seconds)
