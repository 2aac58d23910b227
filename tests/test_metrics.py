"""Series, their bounded labels, and vLLM's names for the same numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from finlora.metrics import BASE_LABEL, OTHER_LABEL, Metrics


@dataclass(frozen=True)
class Gauges:
    """An engine with two running and three waiting requests."""

    num_running: int = 2
    num_waiting: int = 3
    kv_cache_usage: float = 0.25
    memory_bytes: dict[str, int] = field(default_factory=lambda: {"kv_cache": 4096})
    num_adapters: dict[str, int] = field(default_factory=lambda: {"slot": 1, "ram": 2})
    max_loras: int = 16
    running_adapters: tuple[str, ...] = ("news", "tweets")
    waiting_adapters: tuple[str, ...] = ("headlines",)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def finish(metrics: Metrics, adapter: str | None, reason: str = "stop") -> None:
    metrics.request_finished(
        adapter,
        reason,
        num_prompt_tokens=10,
        num_output_tokens=4,
        num_cached_tokens=6,
        queue_seconds=0.002,
        ttft_seconds=0.03,
        e2e_seconds=0.2,
    )


def adapters_in(metrics: Metrics) -> set[str]:
    return {labels["adapter"] for _, labels, _ in samples(metrics) if "adapter" in labels}


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def test_a_finished_request_is_counted_under_its_adapter(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    finish(metrics, "news")
    finish(metrics, None, "length")

    def count(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert count("finlora_requests_total", adapter="news", reason="stop") == 1
    assert count("finlora_requests_total", adapter=BASE_LABEL, reason="length") == 1
    assert count("finlora_prompt_tokens_total", adapter="news") == 10
    assert count("finlora_prompt_tokens_cached_total", adapter="news") == 6
    assert count("finlora_output_tokens_total", adapter="news") == 4
    assert count("finlora_request_seconds_sum") == pytest.approx(0.4)


def test_a_request_that_never_ran_has_no_times_but_an_end(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.request_finished(
        None, "abort", num_prompt_tokens=1, num_output_tokens=0, e2e_seconds=0.1
    )
    assert registry.get_sample_value("finlora_request_queue_seconds_count") == 0
    assert registry.get_sample_value("finlora_time_to_first_token_seconds_count") == 0
    assert registry.get_sample_value("finlora_request_seconds_count") == 1


def test_adapters_beyond_the_bound_share_one_label(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, max_adapters=2)
    for name in ("a", "b", "c", "d", "a", "_other"):
        finish(metrics, name)
    assert adapters_in(metrics) == {"a", "b", OTHER_LABEL}
    labels = {"adapter": OTHER_LABEL, "reason": "stop"}
    assert registry.get_sample_value("finlora_requests_total", labels) == 3


def test_gauges_are_read_at_the_scrape(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    running = [Gauges(num_running=1)]
    metrics.watch("base", lambda: running[-1])
    assert registry.get_sample_value("finlora_requests_running") == 1
    running.append(Gauges(num_running=7))
    assert registry.get_sample_value("finlora_requests_running") == 7
    assert registry.get_sample_value("finlora_memory_bytes", {"part": "kv_cache"}) == 4096
    assert registry.get_sample_value("finlora_adapters_resident", {"tier": "ram"}) == 2


def test_the_vllm_names_carry_the_same_numbers(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.watch("base", Gauges)
    finish(metrics, "news")
    finish(metrics, "tweets", "length")
    metrics.preempted()
    metrics.token_emitted(0.004)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"vllm:{name}", {"model_name": "base", **labels})

    assert value("num_requests_waiting") == 3
    assert value("kv_cache_usage_perc") == 0.25
    assert value("time_to_first_token_seconds_count") == 2
    assert value("time_to_first_token_seconds_bucket", le="0.05") == 2
    assert value("inter_token_latency_seconds_count") == 1
    assert value("num_preemptions_total") == 1
    assert value("prompt_tokens_total") == 20
    assert value("generation_tokens_total") == 8
    assert value("request_success_total", finished_reason="length") == 1


def test_adapters_in_use_are_listed_for_the_gateway(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.watch("base", Gauges)
    labels = {
        "max_lora": "16",
        "running_lora_adapters": "news,tweets",
        "waiting_lora_adapters": "headlines",
    }
    seconds = registry.get_sample_value("vllm:lora_requests_info", labels)
    assert seconds is not None
    assert seconds > 1.7e9


def test_every_series_has_a_help_text_and_a_legal_name(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.watch("base", Gauges)
    finish(metrics, "news")
    metrics.adapter_loaded("ram", 0.1)
    metrics.adapter_evicted("slot")
    metrics.request_rejected("model_not_found")
    metrics.step(num_tokens=8, num_seqs=2, num_adapters=0, seconds=0.01)
    families = list(text_string_to_metric_families(metrics.exposition()[0].decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(family.documentation for family in families if family.name.startswith("finlora"))
    assert {n.split("_")[0].split(":")[0] for n in names} <= {"finlora", "vllm", "process"}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")],
)
def test_the_scraper_gets_the_format_it_asks_for(
    registry: CollectorRegistry, accept: str, content_type: str
) -> None:
    body, sent = Metrics(registry).exposition(accept)
    assert sent.startswith(content_type)
    assert (b"# EOF" in body) == ("openmetrics" in accept)
