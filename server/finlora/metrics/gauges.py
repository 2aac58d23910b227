"""State that is asked for at each scrape: the engine's, and the memory it may use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finlora import cgroup
from finlora.metrics.adapter_series import AdapterSeries

CGROUP_FOLDER = cgroup.ROOT
LIMIT_FILE = "memory.max"
LIMIT_FILE_OF_VERSION_1 = "memory/memory.limit_in_bytes"


class EngineGauges(Protocol):
    """What the engine is asked for at each scrape."""

    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def kv_cache_usage(self) -> float: ...
    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """Everything below, by part."""

    @property
    def base_bytes(self) -> Mapping[str, int]:
        """Weights of the base: quantized, scales, embeddings, other."""

    @property
    def adapter_bytes(self) -> Mapping[str, int]:
        """Adapters by tier: slot, ram."""

    @property
    def kv_cache_bytes(self) -> int: ...
    @property
    def num_kv_pages(self) -> int:
        """Tokens that the KV cache holds."""

    @property
    def prefix_cache_bytes(self) -> int:
        """Part of the KV cache that holds text for later requests."""

    @property
    def cuda_bytes(self) -> Mapping[str, int]:
        """allocated, reserved, peak; empty without a CUDA device."""

    @property
    def resident_adapters(self) -> Mapping[str, Sequence[str]]:
        """Names of the adapters in each tier, one for each version."""

    @property
    def max_loras(self) -> int: ...
    @property
    def running_adapters(self) -> Sequence[str]: ...
    @property
    def waiting_adapters(self) -> Sequence[str]: ...


class GaugeCollector(Collector):
    """The engine's state at the moment of the scrape."""

    def __init__(self, gauges: Callable[[], EngineGauges], adapters: AdapterSeries) -> None:
        self._gauges = gauges
        self._adapters = adapters

    def collect(self) -> Iterator[Metric]:
        """One family for each gauge."""
        now = self._gauges()
        yield gauge("requests_running", "Sequences in the batch", now.num_running)
        yield gauge("requests_waiting", "Sequences in the queue", now.num_waiting)
        yield gauge("kv_cache_usage_ratio", "KV pages in use, 0 to 1", now.kv_cache_usage)
        yield gauge("kv_cache_bytes", "Size of the KV cache", now.kv_cache_bytes)
        yield gauge("prefix_cache_bytes", "Of it, text kept for later", now.prefix_cache_bytes)
        yield gauges("memory_bytes", "Bytes held, all parts", "part", now.memory_bytes)
        yield gauges("base_model_bytes", "Weights of the base", "part", now.base_bytes)
        yield gauges("adapter_bytes", "Weights of adapters", "tier", now.adapter_bytes)
        if now.cuda_bytes:
            yield gauges("cuda_memory_bytes", "The allocator's memory", "kind", now.cuda_bytes)
        counts = {tier: len(names) for tier, names in now.resident_adapters.items()}
        yield gauges("adapters_resident", "Adapters held", "tier", counts)
        yield self._resident(now)

    def _resident(self, now: EngineGauges) -> Metric:
        counts: dict[tuple[str, str], int] = {}
        for tier, names in now.resident_adapters.items():
            for name in names:
                key = self._adapters.label(name), tier
                counts[key] = counts.get(key, 0) + 1
        family = GaugeMetricFamily(
            "finlora_adapter_resident", "Versions held", labels=["adapter", "tier"]
        )
        for key, count in counts.items():
            family.add_metric(key, count)
        return family


def memory_limit_bytes(root: Path = CGROUP_FOLDER, membership: Path = cgroup.MEMBERSHIP) -> int:
    """What the process may use: its container's or its unit's limit, else the machine's memory."""
    files = [group / LIMIT_FILE for group in cgroup.groups(root, membership)]
    limits = [psutil.virtual_memory().total]
    for file in (*files, root / LIMIT_FILE_OF_VERSION_1):
        try:
            limits.append(int(file.read_text("ascii")))
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return min(limits)


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A family of one sample."""
    return GaugeMetricFamily(f"finlora_{name}", text, value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """A family with one sample for each key."""
    family = GaugeMetricFamily(f"finlora_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
