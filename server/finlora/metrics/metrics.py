"""What the engine and the API report, as Prometheus series."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from finlora.metrics import buckets
from finlora.metrics.adapter_series import TIERS, AdapterSeries, RegisteredAdapters
from finlora.metrics.events import FinishedRequest, RequestListener
from finlora.metrics.gauges import EngineGauges, GaugeCollector, memory_limit_bytes
from finlora.metrics.http_series import HTTPSeries
from finlora.metrics.vllm import VLLMCollector, VLLMSources

PHASES = ("queue", "prefill", "decode")


class Metrics:
    """Takes observations from the engine's and the HTTP thread.

    `registered` bounds the names that may become a label: what is not registered is counted as
    `_other`, and what is removed from the registry disappears with the next scrape.
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

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"finlora_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, edges: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"finlora_{name}", text, labels, buckets=edges, registry=registry)

        self.http = HTTPSeries(registry)
        self._disconnects = counter("disconnects", "Sequences cancelled, by phase", "phase")
        self._preemptions = counter("preemptions", "Sequences put back for lack of KV pages")
        self._queue = histogram("request_queue_seconds", "Arrival to first step", buckets.REQUEST)
        self._prefill = histogram(
            "request_prefill_seconds", "First step to first token", buckets.REQUEST
        )
        self._ttft = histogram(
            "time_to_first_token_seconds", "Arrival to first token", buckets.FIRST_TOKEN
        )
        self._decode = histogram(
            "request_decode_seconds", "First token to last token", buckets.REQUEST
        )
        self._e2e = histogram("request_seconds", "Arrival to end of a sequence", buckets.REQUEST)
        self._inter_token = histogram(
            "inter_token_seconds", "Time between two tokens of a sequence", buckets.INTER_TOKEN
        )
        self._token_mean = histogram(
            "request_mean_token_seconds",
            "Mean time between the tokens of a sequence",
            buckets.INTER_TOKEN,
        )
        self._prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a sequence", buckets.REQUEST_TOKENS
        )
        self._output_tokens = histogram(
            "request_output_tokens", "Tokens generated for a sequence", buckets.REQUEST_TOKENS
        )
        self._step = histogram("step_seconds", "Time of one engine step", buckets.STEP)
        self._step_tokens = histogram("step_tokens", "Rows of a step's batch", buckets.STEP_TOKENS)
        self._step_seqs = histogram("step_sequences", "Sequences in a step", buckets.COUNT)
        self._step_adapters = histogram(
            "step_adapters", "Different adapters in a step", (0, *buckets.COUNT[:9])
        )
        self._load_seconds = histogram(
            "adapter_load_seconds", "Time to bring an adapter into a tier", buckets.WAIT, "tier"
        )
        for phase in PHASES:
            self._disconnects.labels(phase)
        for tier in TIERS:
            self._load_seconds.labels(tier)
        limit = Gauge("finlora_memory_limit_bytes", "Memory the process may use", registry=registry)
        limit.set_function(memory_limit_bytes)
        ProcessCollector(registry=registry)

    def watch(self, model_name: str, gauges: Callable[[], EngineGauges]) -> None:
        """Read the engine's gauges at every scrape and add the vLLM names for `model_name`."""
        collector = GaugeCollector(gauges, self._adapters)
        self._registry.register(collector)
        tokens = (self._ttft, self._inter_token, self._token_mean)
        stages = (self._e2e, self._queue, self._prefill, self._decode)
        sizes = (self._prompt_tokens, self._output_tokens, self._step_tokens)
        sources = VLLMSources(
            same=[collector, *tokens, *stages, *sizes],
            sums={
                "prompt_tokens": self._adapters.prompt_tokens,
                "generation_tokens": self._adapters.output_tokens,
                "prefix_cache_queries": self._adapters.prompt_tokens,
                "prefix_cache_hits": self._adapters.cached_tokens,
                "num_preemptions": self._preemptions,
            },
            requests=self._adapters.requests,
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
        for histogram, seconds in (
            (self._queue, event.queue_seconds),
            (self._prefill, event.prefill_seconds),
            (self._ttft, event.first_token_seconds),
            (self._decode, event.decode_seconds),
            (self._token_mean, event.mean_token_seconds),
            (self._e2e, event.seconds),
        ):
            if seconds is not None:
                histogram.observe(seconds)
        self._prompt_tokens.observe(event.num_prompt_tokens)
        self._output_tokens.observe(event.num_output_tokens)
        if event.reason == "abort":
            self._disconnects.labels(event.phase).inc()
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
        self._step.observe(seconds)
        self._step_tokens.observe(num_tokens)
        self._step_seqs.observe(num_seqs)
        self._step_adapters.observe(num_adapters)
        self._adapters.spent(seconds, rows)

    def token_emitted(self, seconds: float) -> None:
        """A sequence got a token `seconds` after its previous one."""
        self._inter_token.observe(seconds)

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
        self._preemptions.inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All series as a response body, and its content type, for an Accept header."""
        self._adapters.forget_removed()
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
