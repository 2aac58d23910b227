"""Our series once more, under vLLM's names, with its buckets and its `model_name` label."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from finlora.metrics import buckets
from finlora.metrics.gauges import EngineGauges

VLLM_GAUGES = {
    "finlora_requests_running": "vllm:num_requests_running",
    "finlora_requests_waiting": "vllm:num_requests_waiting",
    "finlora_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
}
# Our histogram -> vLLM's name and edges.
VLLM_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "finlora_time_to_first_token_seconds": (
        "vllm:time_to_first_token_seconds",
        buckets.VLLM_FIRST_TOKEN,
    ),
    "finlora_inter_token_seconds": ("vllm:inter_token_latency_seconds", buckets.VLLM_INTER_TOKEN),
    "finlora_request_mean_token_seconds": (
        "vllm:request_time_per_output_token_seconds",
        buckets.VLLM_INTER_TOKEN,
    ),
    "finlora_request_seconds": ("vllm:e2e_request_latency_seconds", buckets.VLLM_REQUEST),
    "finlora_request_queue_seconds": ("vllm:request_queue_time_seconds", buckets.VLLM_REQUEST),
    "finlora_request_prefill_seconds": ("vllm:request_prefill_time_seconds", buckets.VLLM_REQUEST),
    "finlora_request_decode_seconds": ("vllm:request_decode_time_seconds", buckets.VLLM_REQUEST),
    "finlora_request_prompt_tokens": ("vllm:request_prompt_tokens", buckets.REQUEST_TOKENS),
    "finlora_request_output_tokens": ("vllm:request_generation_tokens", buckets.REQUEST_TOKENS),
    "finlora_step_tokens": ("vllm:iteration_tokens_total", buckets.VLLM_STEP_TOKENS),
}


@dataclass(frozen=True, slots=True)
class VLLMSources:
    """Our series that vLLM knows by other names; `totals` by its names, without `vllm:`."""

    same: Sequence[Collector]
    totals: Mapping[str, Counter]
    requests: Counter
    gauges: Callable[[], EngineGauges]


class VLLMCollector(Collector):
    """Reads the sources at each scrape."""

    def __init__(self, model_name: str, sources: VLLMSources, max_adapters: int) -> None:
        self._model_name = model_name
        self._sources = sources
        self._max_adapters = max_adapters

    def collect(self) -> Iterator[Metric]:
        """One family for each of vLLM's names."""
        for metric in (m for source in self._sources.same for m in source.collect()):
            if metric.name in VLLM_GAUGES:
                yield self._renamed(metric, VLLM_GAUGES[metric.name], metric.samples)
            elif metric.name in VLLM_HISTOGRAMS:
                name, edges = VLLM_HISTOGRAMS[metric.name]
                yield self._renamed(metric, name, _at(edges, metric.samples))
        for name, counter in self._sources.totals.items():
            family = self._counter(name, next(iter(counter.describe())).documentation, [])
            for _, value in _values(counter):
                family.add_metric([self._model_name], value)
            yield family
        yield self._finished()
        yield self._lora_requests()
        yield self._cache_config()

    def _renamed(self, metric: Metric, name: str, samples: Iterable[Sample]) -> Metric:
        renamed = Metric(name, metric.documentation, metric.type)
        for sample in samples:
            suffix = sample.name.removeprefix(metric.name)
            labels = {"model_name": self._model_name, **sample.labels}
            renamed.add_sample(name + suffix, labels, sample.value)
        return renamed

    def _finished(self) -> Metric:
        family = self._counter("request_success", "Sequences that ended", ["finished_reason"])
        for labels, value in _values(self._sources.requests):
            family.add_metric([self._model_name, labels["reason"]], value)
        return family

    def _lora_requests(self) -> Metric:
        now = self._sources.gauges()
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

    def _cache_config(self) -> Metric:
        """The size of the KV cache; gateways weigh it against what waits."""
        facts = {"block_size": "1", "num_gpu_blocks": str(self._sources.gauges().num_kv_pages)}
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache: blocks and their tokens", labels=[*facts]
        )
        family.add_metric([*facts.values()], 1)
        return family

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
        return CounterMetricFamily(f"vllm:{name}", text, labels=["model_name", *labels])


def _at(edges: Sequence[float], samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples of a histogram without the buckets of other edges; buckets are cumulative."""
    kept = {*map(float, edges), float("inf")}
    return (s for s in samples if "le" not in s.labels or float(s.labels["le"]) in kept)


def _values(counter: Counter) -> Iterable[tuple[dict[str, str], float]]:
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, sample.value
