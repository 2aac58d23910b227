"""Every Prometheus series of the process, in a registry that is handed in.

`finlora_*` are our own. The `vllm:*` subset repeats some of them under the names that existing
dashboards and the Kubernetes inference gateway read. Callers pass plain numbers and strings.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

# Registered names start with a letter or a digit, so these two can never be an adapter's.
BASE_LABEL = "_base"
OTHER_LABEL = "_other"

WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

VLLM_NAMES = {
    "finlora_requests_running": "vllm:num_requests_running",
    "finlora_requests_waiting": "vllm:num_requests_waiting",
    "finlora_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "finlora_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "finlora_inter_token_seconds": "vllm:inter_token_latency_seconds",
    "finlora_request_seconds": "vllm:e2e_request_latency_seconds",
    "finlora_request_queue_seconds": "vllm:request_queue_time_seconds",
    "finlora_preemptions": "vllm:num_preemptions",
}


class EngineGauges(Protocol):
    """What the engine is asked for at each scrape."""

    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def kv_cache_usage(self) -> float: ...
    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes held by each part: base, kv_cache, adapter_slots, adapter_cache."""

    @property
    def num_adapters(self) -> dict[str, int]:
        """Adapters resident in each tier: slot, ram."""

    @property
    def max_loras(self) -> int: ...
    @property
    def running_adapters(self) -> Sequence[str]: ...
    @property
    def waiting_adapters(self) -> Sequence[str]: ...


class Metrics:
    """Counts what the engine and the API report; an adapter's name is one of a bounded set."""

    def __init__(self, registry: CollectorRegistry, *, max_adapters: int = 100) -> None:
        self._registry = registry
        self._max_adapters = max_adapters
        self._adapters: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"finlora_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"finlora_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Sequences that ended", "adapter", "reason")
        self._rejected = counter("requests_rejected", "Requests refused, by error code", "code")
        self._prompt = counter("prompt_tokens", "Prompt tokens served", "adapter")
        self._cached = counter("prompt_tokens_cached", "Of these, from the prefix cache", "adapter")
        self._output = counter("output_tokens", "Tokens generated", "adapter")
        self._loads = counter("adapter_loads", "Adapters brought into a tier", "tier")
        self._evictions = counter("adapter_evictions", "Adapters put out of a tier", "tier")
        self._preemptions = counter("preemptions", "Sequences put back for lack of KV pages")
        self._queue = histogram("request_queue_seconds", "Arrival to first step", WAIT_BUCKETS)
        self._ttft = histogram(
            "time_to_first_token_seconds", "Arrival to first token", WAIT_BUCKETS
        )
        self._e2e = histogram("request_seconds", "Arrival to end of a sequence", WAIT_BUCKETS)
        self._inter_token = histogram(
            "inter_token_seconds", "Time between two tokens of a sequence", TOKEN_BUCKETS
        )
        self._step = histogram("step_seconds", "Time of one engine step", TOKEN_BUCKETS)
        self._step_tokens = histogram("step_tokens", "Tokens in a step", COUNT_BUCKETS)
        self._step_seqs = histogram("step_sequences", "Sequences in a step", COUNT_BUCKETS)
        self._step_adapters = histogram(
            "step_adapters", "Different adapters in a step", (0, *COUNT_BUCKETS[:9])
        )
        self._load_seconds = histogram(
            "adapter_load_seconds", "Time to bring an adapter into a tier", WAIT_BUCKETS, "tier"
        )
        ProcessCollector(registry=registry)

    def watch(self, model_name: str, gauges: Callable[[], EngineGauges]) -> None:
        """Read the engine's gauges at every scrape and add the vLLM names for `model_name`."""
        self._registry.register(_GaugeCollector(gauges))
        own = (self._ttft, self._inter_token, self._e2e, self._queue, self._preemptions)
        self._registry.register(
            _VLLMCollector(
                model_name,
                [_GaugeCollector(gauges), *own],
                {"prompt": self._prompt, "generation": self._output},
                self._requests,
                gauges,
                self._max_adapters,
            )
        )

    def request_finished(
        self,
        adapter: str | None,
        reason: str,
        *,
        num_prompt_tokens: int,
        num_output_tokens: int,
        num_cached_tokens: int = 0,
        queue_seconds: float | None = None,
        ttft_seconds: float | None = None,
        e2e_seconds: float,
    ) -> None:
        """A sequence ended; a time is None when it ended before it got that far."""
        label = self._label(adapter)
        self._requests.labels(label, reason).inc()
        self._prompt.labels(label).inc(num_prompt_tokens)
        self._cached.labels(label).inc(num_cached_tokens)
        self._output.labels(label).inc(num_output_tokens)
        if queue_seconds is not None:
            self._queue.observe(queue_seconds)
        if ttft_seconds is not None:
            self._ttft.observe(ttft_seconds)
        self._e2e.observe(e2e_seconds)

    def request_rejected(self, code: str) -> None:
        """A request was refused; `code` is one of the API's error codes, never the client's."""
        self._rejected.labels(code).inc()

    def step(self, *, num_tokens: int, num_seqs: int, num_adapters: int, seconds: float) -> None:
        """The engine ran one step with `num_adapters` different adapters."""
        self._step.observe(seconds)
        self._step_tokens.observe(num_tokens)
        self._step_seqs.observe(num_seqs)
        self._step_adapters.observe(num_adapters)

    def token_emitted(self, seconds: float) -> None:
        """A sequence got a token `seconds` after its previous one."""
        self._inter_token.observe(seconds)

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        """An adapter came into a tier (`ram` or `slot`)."""
        self._loads.labels(tier).inc()
        self._load_seconds.labels(tier).observe(seconds)

    def adapter_evicted(self, tier: str) -> None:
        """An adapter left a tier."""
        self._evictions.labels(tier).inc()

    def preempted(self) -> None:
        """A running sequence gave its pages back and waits to be computed again."""
        self._preemptions.inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All series as a response body, and its content type, for an Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _label(self, adapter: str | None) -> str:
        if adapter is None:
            return BASE_LABEL
        if adapter not in self._adapters and len(self._adapters) >= self._max_adapters:
            return OTHER_LABEL
        self._adapters.add(adapter)
        return adapter


class _GaugeCollector(Collector):
    """The engine's state at the moment of the scrape."""

    def __init__(self, gauges: Callable[[], EngineGauges]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        now = self._gauges()
        yield _gauge("requests_running", "Sequences in the batch", now.num_running)
        yield _gauge("requests_waiting", "Sequences in the queue", now.num_waiting)
        yield _gauge("kv_cache_usage_ratio", "KV pages in use, 0 to 1", now.kv_cache_usage)
        yield _labelled_gauge("memory_bytes", "Bytes held", "part", now.memory_bytes)
        yield _labelled_gauge("adapters_resident", "Adapters held", "tier", now.num_adapters)


class _VLLMCollector(Collector):
    """Our series once more, under vLLM's names and with its `model_name` label."""

    def __init__(
        self,
        model_name: str,
        same: Sequence[Collector],
        tokens: dict[str, Counter],
        requests: Counter,
        gauges: Callable[[], EngineGauges],
        max_adapters: int,
    ) -> None:
        self._model_name = model_name
        self._same = same
        self._tokens = tokens
        self._requests = requests
        self._gauges = gauges
        self._max_adapters = max_adapters

    def collect(self) -> Iterator[Metric]:
        for metric in (m for source in self._same for m in source.collect()):
            if metric.name in VLLM_NAMES:
                yield self._renamed(metric, VLLM_NAMES[metric.name])
        for kind, counter in self._tokens.items():
            family = self._counter(f"{kind}_tokens", "Tokens, all adapters", [])
            family.add_metric([self._model_name], sum(v for _, v in _totals(counter)))
            yield family
        yield self._finished()
        yield self._lora_requests()

    def _renamed(self, metric: Metric, name: str) -> Metric:
        renamed = Metric(name, metric.documentation, metric.type)
        for sample in metric.samples:
            suffix = sample.name.removeprefix(metric.name)
            labels = {"model_name": self._model_name, **sample.labels}
            renamed.add_sample(name + suffix, labels, sample.value)
        return renamed

    def _finished(self) -> Metric:
        family = self._counter("request_success", "Sequences that ended", ["finished_reason"])
        reasons: dict[str, float] = {}
        for labels, value in _totals(self._requests):
            reasons[labels["reason"]] = reasons.get(labels["reason"], 0) + value
        for reason, value in reasons.items():
            family.add_metric([self._model_name, reason], value)
        return family

    def _lora_requests(self) -> Metric:
        now = self._gauges()
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "Adapters in use; the value is the time", labels=labels
        )
        running, waiting = (
            ",".join(names[: self._max_adapters])
            for names in (now.running_adapters, now.waiting_adapters)
        )
        family.add_metric([str(now.max_loras), running, waiting], time.time())
        return family

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
        return CounterMetricFamily(f"vllm:{name}", text, labels=["model_name", *labels])


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"finlora_{name}", text, value)


def _labelled_gauge(name: str, text: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"finlora_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _totals(counter: Counter) -> Iterable[tuple[dict[str, str], float]]:
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, sample.value
