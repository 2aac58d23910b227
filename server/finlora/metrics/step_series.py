"""The engine's steps: how long they take, and what is in them."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Histogram

from finlora.metrics import buckets


class StepSeries:
    """Histograms over steps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, edges: Sequence[float]) -> Histogram:
            return Histogram(f"finlora_step_{name}", text, buckets=edges, registry=registry)

        self._seconds = histogram("seconds", "Time of one engine step", buckets.STEP)
        self.tokens = histogram("tokens", "Rows of a step's batch", buckets.STEP_TOKENS)
        self._sequences = histogram("sequences", "Sequences in a step", buckets.COUNT)
        self._adapters = histogram(
            "adapters", "Different adapters in a step", (0, *buckets.COUNT[:9])
        )

    def ran(self, seconds: float, *, num_tokens: int, num_seqs: int, num_adapters: int) -> None:
        """The engine ran one step."""
        self._seconds.observe(seconds)
        self.tokens.observe(num_tokens)
        self._sequences.observe(num_seqs)
        self._adapters.observe(num_adapters)
