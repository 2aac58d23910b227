"""Series of the whole process, and vLLM's names for the same numbers."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from finlora.metrics import Metrics, buckets
from tests.metrics.gauges import EVENT, Gauges, event, samples, value


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def test_every_stage_of_a_request_is_timed(metrics: Metrics) -> None:
    metrics.request_finished(EVENT)

    def total(name: str) -> float | None:
        return value(metrics, f"finlora_{name}_sum")

    assert total("request_queue_seconds") == pytest.approx(0.002)
    assert total("request_prefill_seconds") == pytest.approx(0.028)
    assert total("time_to_first_token_seconds") == pytest.approx(0.03)
    assert total("request_decode_seconds") == pytest.approx(0.12)
    assert total("request_seconds") == pytest.approx(0.2)
    assert total("request_prompt_tokens") == 10
    assert total("request_output_tokens") == 4


@pytest.mark.parametrize(
    ("started", "first_token", "phase"),
    [(None, None, "queue"), (100.1, None, "prefill"), (100.1, 100.15, "decode")],
)
def test_who_leaves_is_counted_by_phase_and_only_reached_stages_are_timed(
    metrics: Metrics, started: float | None, first_token: float | None, phase: str
) -> None:
    times = {"start_time": started, "first_token_time": first_token, "last_token_time": first_token}
    metrics.request_finished(event(reason="abort", **times))
    assert value(metrics, "finlora_disconnects_total", phase=phase) == 1
    assert sum(v for n, _, v in samples(metrics) if n == "finlora_disconnects_total") == 1
    assert value(metrics, "finlora_request_queue_seconds_count") == (started is not None)
    assert value(metrics, "finlora_time_to_first_token_seconds_count") == (first_token is not None)
    assert value(metrics, "finlora_request_seconds_count") == 1


def test_who_is_withdrawn_because_another_failed_has_not_left(metrics: Metrics) -> None:
    metrics.request_finished(event(reason="abort", is_withdrawn=True))
    assert value(metrics, "finlora_requests_total", adapter="news", reason="abort") == 1
    assert sum(v for n, _, v in samples(metrics) if n == "finlora_disconnects_total") == 0


def test_a_prompt_that_never_ran_has_not_been_served(metrics: Metrics) -> None:
    metrics.watch("base", Gauges)
    never = {"start_time": None, "first_token_time": None, "last_token_time": None}
    for reason in ("abort", "error"):
        metrics.request_finished(event(reason=reason, num_cached_tokens=0, **never))
    assert value(metrics, "finlora_prompt_tokens_total", adapter="news") == 0
    assert value(metrics, "vllm:prompt_tokens_total", model_name="base") == 0
    assert value(metrics, "vllm:prefix_cache_queries_total", model_name="base") == 0
    metrics.request_finished(event(reason="abort"))
    assert value(metrics, "finlora_prompt_tokens_total", adapter="news") == 10
    assert value(metrics, "vllm:prompt_tokens_total", model_name="base") == 10


def test_gauges_are_read_at_the_scrape(metrics: Metrics) -> None:
    running = [Gauges(num_running=1)]
    metrics.watch("base", lambda: running[-1])
    assert value(metrics, "finlora_requests_running") == 1
    running.append(Gauges(num_running=7))
    assert value(metrics, "finlora_requests_running") == 7
    assert value(metrics, "finlora_memory_bytes", part="kv_cache") == 4096
    assert value(metrics, "finlora_base_model_bytes", part="quantized") == 10
    assert value(metrics, "finlora_adapter_bytes", tier="ram") == 6
    assert value(metrics, "finlora_prefix_cache_bytes") == 1024
    assert value(metrics, "finlora_adapters_resident", tier="ram") == 2
    assert value(metrics, "finlora_adapter_resident", adapter="news", tier="slot") == 1


def test_cuda_memory_is_shown_where_there_is_some(metrics: Metrics) -> None:
    now = [Gauges(), Gauges(cuda_bytes={"allocated": 1, "reserved": 2, "peak": 3})]
    metrics.watch("base", lambda: now[0])
    assert "cuda" not in metrics.exposition()[0].decode()
    del now[0]
    assert value(metrics, "finlora_cuda_memory_bytes", kind="peak") == 3


def test_the_process_says_what_it_is(metrics: Metrics) -> None:
    metrics.describe(build={"version": "1"}, model={"name": "b"}, limits={"max_num_seqs": 64})
    assert value(metrics, "finlora_build_info", version="1") == 1
    assert value(metrics, "finlora_model_info", name="b") == 1
    assert value(metrics, "finlora_limit", setting="max_num_seqs") == 64
    limit = value(metrics, "finlora_memory_limit_bytes")
    assert limit is not None
    assert limit > 1e6


def test_the_vllm_names_carry_the_same_numbers(metrics: Metrics) -> None:
    metrics.watch("base", Gauges)
    metrics.request_finished(EVENT)
    metrics.request_finished(event(adapter="tweets", reason="length"))
    metrics.preempted()
    metrics.token_emitted(0.004)

    def vllm(name: str, **labels: str) -> float | None:
        return value(metrics, f"vllm:{name}", model_name="base", **labels)

    assert vllm("num_requests_waiting") == 3
    assert vllm("kv_cache_usage_perc") == 0.25
    assert vllm("time_to_first_token_seconds_count") == 2
    assert vllm("time_to_first_token_seconds_bucket", le="0.04") == 2
    assert vllm("inter_token_latency_seconds_count") == 1
    assert vllm("num_preemptions_total") == 1
    assert vllm("prompt_tokens_total") == 20
    assert vllm("prefix_cache_hits_total") == 12
    assert vllm("generation_tokens_total") == 8
    assert vllm("request_success_total", finished_reason="length") == 1


def test_the_vllm_names_tell_the_size_of_the_kv_cache(metrics: Metrics) -> None:
    metrics.watch("base", Gauges)
    assert value(metrics, "vllm:cache_config_info", block_size="1", num_gpu_blocks="64") == 1


def test_the_mean_between_tokens_needs_two(metrics: Metrics) -> None:
    metrics.request_finished(EVENT)  # 3 gaps in 0.12 s
    metrics.request_finished(event(num_output_tokens=1))
    assert value(metrics, "finlora_request_mean_token_seconds_sum") == pytest.approx(0.04)
    assert value(metrics, "finlora_request_mean_token_seconds_count") == 1


def test_readiness_is_asked_at_the_scrape(metrics: Metrics) -> None:
    answers = [True, False]
    metrics.watch_ready(lambda: answers.pop())
    assert value(metrics, "finlora_ready") == 0
    assert value(metrics, "finlora_ready") == 1


def test_refusals_begin_at_zero(metrics: Metrics) -> None:
    metrics.http.begin(["overloaded"])
    assert value(metrics, "finlora_requests_rejected_total", code="overloaded") == 0
    metrics.http.rejected("overloaded")
    assert value(metrics, "finlora_requests_rejected_total", code="overloaded") == 1


def test_answers_are_counted_and_timed_by_route(metrics: Metrics) -> None:
    metrics.http.answered("/v1/completions", 200, 0.5)
    metrics.http.answered("/v1/completions", 400, 0.1)
    counted = {"route": "/v1/completions", "status": "400"}
    assert value(metrics, "finlora_http_requests_total", **counted) == 1
    seconds = value(metrics, "finlora_http_request_seconds_sum", route="/v1/completions")
    assert seconds == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("time_to_first_token_seconds", buckets.VLLM_FIRST_TOKEN),
        ("inter_token_latency_seconds", buckets.VLLM_INTER_TOKEN),
        ("request_time_per_output_token_seconds", buckets.VLLM_INTER_TOKEN),
        ("e2e_request_latency_seconds", buckets.VLLM_REQUEST),
        ("iteration_tokens_total", buckets.VLLM_STEP_TOKENS),
    ],
)
def test_the_vllm_histograms_have_its_buckets(
    metrics: Metrics, name: str, edges: tuple[float, ...]
) -> None:
    metrics.watch("base", Gauges)
    found = [own["le"] for n, own, _ in samples(metrics) if n == f"vllm:{name}_bucket"]
    assert [float(edge) for edge in found] == [*edges, float("inf")]


def test_adapters_in_use_are_listed_for_the_gateway(metrics: Metrics) -> None:
    metrics.watch("base", Gauges)
    labels = {
        "max_lora": "16",
        "running_lora_adapters": "news,tweets",
        "waiting_lora_adapters": "headlines",
    }
    seconds = value(metrics, "vllm:lora_requests_info", **labels)
    assert seconds is not None
    assert seconds > 1.7e9


def test_every_series_has_a_help_text_and_a_legal_name(metrics: Metrics) -> None:
    metrics.watch("base", Gauges)
    metrics.request_finished(EVENT)
    metrics.adapter_loaded("news", "ram", 0.1)
    metrics.adapter_evicted("news", "slot")
    metrics.http.rejected("model_not_found")
    metrics.step(num_tokens=8, num_seqs=2, num_adapters=0, seconds=0.01, rows={None: 8})
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
    metrics: Metrics, accept: str, content_type: str
) -> None:
    body, sent = metrics.exposition(accept)
    assert sent.startswith(content_type)
    assert (b"# EOF" in body) == ("openmetrics" in accept)


@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
@pytest.mark.parametrize("version", ["abc", "1.0.x", "1.", "\u00b2", "9" * 5000 + ".x"])
def test_who_asks_for_a_version_that_is_none_gets_plain_text(
    metrics: Metrics, media_type: str, version: str
) -> None:
    plain = metrics.exposition()[1]
    body, sent = metrics.exposition(f"{media_type}; version={version}")
    assert sent == plain
    assert b"finlora_requests_total" in body
