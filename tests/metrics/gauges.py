"""An engine's state for a scrape, and events, all made up."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from finlora.metrics import FinishedRequest, Metrics


@dataclass(frozen=True)
class Gauges:
    """Two running and three waiting requests."""

    num_running: int = 2
    num_waiting: int = 3
    kv_cache_usage: float = 0.25
    memory_bytes: dict[str, int] = field(default_factory=lambda: {"kv_cache": 4096})
    base_bytes: dict[str, int] = field(default_factory=lambda: {"quantized": 10, "scales": 1})
    adapter_bytes: dict[str, int] = field(default_factory=lambda: {"slot": 5, "ram": 6})
    kv_cache_bytes: int = 4096
    num_kv_pages: int = 64
    prefix_cache_bytes: int = 1024
    cuda_bytes: dict[str, int] = field(default_factory=dict)
    resident_adapters: dict[str, list[str]] = field(
        default_factory=lambda: {"slot": ["news"], "ram": ["news", "tweets"]}
    )
    max_loras: int = 16
    running_adapters: tuple[str, ...] = ("news", "tweets")
    waiting_adapters: tuple[str, ...] = ("headlines",)


EVENT = FinishedRequest(
    request_id="cmpl-1-0",
    adapter="news",
    digest="d1",
    labels=(),
    reason="stop",
    error=None,
    error_text=None,
    text="",
    num_prompt_tokens=10,
    num_output_tokens=4,
    num_cached_tokens=6,
    num_preemptions=0,
    arrival_time=100.0,
    start_time=100.002,
    first_token_time=100.03,
    last_token_time=100.15,
    end_time=100.2,
)


def event(**changes: Any) -> FinishedRequest:
    """A request that ended well, with something else about it."""
    return replace(EVENT, **changes)


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    """Everything a scrape shows."""
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, name: str, /, **labels: Any) -> float | None:
    """One sample of a scrape; None: there is none."""
    found = [v for n, own, v in samples(metrics) if (n, own) == (name, labels)]
    return found[0] if found else None
