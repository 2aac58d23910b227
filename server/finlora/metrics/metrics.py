"""What the engine and the API report, as Prometheus series."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from finlora.metrics import buckets
from finlora.metrics.adapter_series import TIERS, AdapterSeries, RegisteredAdapters
from finlora.metrics.events import FinishedRequest, RequestListener
from finlora.metrics.gauges import EngineGauges, GaugeCollector, memory_limit_bytes
from finlora.metrics.http_series import HTTPSeries
from finlora.metrics.sequence_series import SequenceSeries
from finlora.metrics.step_series import StepSeries
from finlora.metrics.totals import Totals
from finlora.metrics.vllm import VLLMCollector, VLLMSources


class Metrics:
    """Takes observations from the engine's and the HTTP thread.

    `registered` bounds the names that may become a label: what is not registered is counted as
    `_other`, and a scrape begins the series of what is new in the registry and drops those of what
    has been removed.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        max_adapters: int = 100,
        registered: RegisteredAdapters | None = None,
    ) -> None:
        self._registry = registry
        self._max_adapters = max_adapters
        self._listeners: list[RequestListener] = []
        self._adapters = AdapterSeries(registry, max_adapters, registered)
        self._totals = Totals()
        self._sequences = SequenceSeries(registry)
        self._steps = StepSeries(registry)
        self.http = HTTPSeries(registry)
        self._load_seconds = Histogram(
            "finlora_adapter_load_seconds",
            "Time to bring an adapter into a tier",
            ["tier"],
            buckets=buckets.WAIT,
            registry=registry,
        )
        for tier in TIERS:
            self._load_seconds.labels(tier)
        limit = Gauge("finlora_memory_limit_bytes", "Memory the process may use", registry=registry)
        limit.set_function(memory_limit_bytes)
        ProcessCollector(registry=registry)

    def watch(self, model_name: str, gauges: Callable[[], EngineGauges]) -> None:
        """Read the engine's gauges at every scrape and add the vLLM names for `model_name`."""
        collector = GaugeCollector(gauges, self._adapters)
        self._registry.register(collector)
        sources = VLLMSources(
            same=[collector, *self._sequences.histograms, self._steps.tokens],
            totals={
                "prompt_tokens": self._totals.prompt_tokens,
                "generation_tokens": self._totals.output_tokens,
                "prefix_cache_queries": self._totals.prompt_tokens,
                "prefix_cache_hits": self._totals.cached_tokens,
                "num_preemptions": self._sequences.preemptions,
            },
            requests=self._totals.requests,
            gauges=gauges,
        )
        self._registry.register(VLLMCollector(model_name, sources, self._max_adapters))

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Ask at every scrape whether requests are served."""
        gauge = Gauge("finlora_ready", "1 while requests are served", registry=self._registry)
        gauge.set_function(lambda: float(ready()))

    def describe(
        self, *, build: Mapping[str, str], model: Mapping[str, str], limits: Mapping[str, int]
    ) -> None:
        """What this process is: versions, the base, and the settings that bound its work."""
        Info("finlora_build", "Versions", registry=self._registry).info(dict(build))
        Info("finlora_model", "The base that is served", registry=self._registry).info(dict(model))
        gauge = Gauge("finlora_limit", "Settings", ["setting"], registry=self._registry)
        for setting, value in limits.items():
            gauge.labels(setting).set(value)

    def on_finished(self, listener: RequestListener) -> None:
        """Also tell `listener` of every sequence that ends, on the engine's thread."""
        self._listeners.append(listener)

    def request_finished(self, event: FinishedRequest) -> None:
        """A sequence ended."""
        self._adapters.finished(event)
        self._totals.finished(event)
        self._sequences.finished(event)
        for listener in self._listeners:
            listener(event)

    def step(
        self,
        *,
        num_tokens: int,
        num_seqs: int,
        num_adapters: int,
        seconds: float,
        rows: Mapping[str | None, int],
    ) -> None:
        """The engine ran one step; `rows` counts those of each adapter name (None: the base)."""
        self._steps.ran(
            seconds, num_tokens=num_tokens, num_seqs=num_seqs, num_adapters=num_adapters
        )
        self._adapters.spent(seconds, rows)

    def token_emitted(self, seconds: float) -> None:
        """A sequence got a token `seconds` after its previous one."""
        self._sequences.token_emitted(seconds)

    def non_finite(self, adapter: str | None) -> None:
        """The logits of one row were not finite."""
        self._adapters.non_finite(adapter)

    def adapter_loaded(self, adapter: str, tier: str, seconds: float) -> None:
        """An adapter came into a tier (`ram` or `slot`)."""
        self._adapters.loaded(adapter, tier)
        self._load_seconds.labels(tier).observe(seconds)

    def adapter_evicted(self, adapter: str, tier: str) -> None:
        """An adapter left a tier."""
        self._adapters.evicted(adapter, tier)

    def adapter_load_failed(self, adapter: str) -> None:
        """An adapter could not be brought into RAM."""
        self._adapters.load_failed(adapter)

    def preempted(self) -> None:
        """A running sequence gave its pages back and waits to be computed again."""
        self._sequences.preemptions.inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All series as a response body, and its content type, for an Accept header."""
        encode, content_type = _encoder(accept)
        with self._adapters.scrape():
            return encode(self._registry), content_type


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """What writes the series, and its content type; plain text when `accept` cannot be read."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number: anybody can send one
        return choose_encoder("")
