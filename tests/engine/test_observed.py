"""What the metrics are told of requests that really ran."""

from dataclasses import replace

import pytest
import torch

from finlora.adapters.adapter import Adapter
from finlora.engine.observed import cuda_bytes
from finlora.metrics import OTHER_LABEL, FinishedRequest
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import GREEDY, EngineUnderTest
from tests.engine.test_parity import prompts
from tests.metrics.gauges import samples, value

PROMPT = prompts(2)[1]


@pytest.fixture
def engine(llama: World, make_engine: EngineMaker) -> EngineUnderTest:
    return make_engine(llama)


def listen(engine: EngineUnderTest) -> list[FinishedRequest]:
    events: list[FinishedRequest] = []
    engine.engine._metrics.on_finished(events.append)
    return events


def with_labels(adapter: Adapter, labels: list[str]) -> Adapter:
    return replace(adapter, manifest=adapter.manifest.model_copy(update={"labels": labels}))


def test_the_life_of_a_request_is_told_in_order(llama: World, engine: EngineUnderTest) -> None:
    events = listen(engine)
    adapter = llama.adapters["lora"]
    engine.run([(PROMPT, adapter), (PROMPT, None)])
    by_adapter = {event.adapter: event for event in events}
    event = by_adapter["lora"]
    assert event.digest == adapter.digest
    assert (event.reason, event.error) == ("length", None)
    assert (event.num_prompt_tokens, event.num_output_tokens) == (len(PROMPT), GREEDY.max_tokens)
    for ended in events:
        assert ended.start_time is not None
        assert ended.first_token_time is not None
        assert ended.last_token_time is not None
        times = [ended.arrival_time, ended.start_time, ended.first_token_time]
        times += [ended.last_token_time, ended.end_time]
        assert times == sorted(times)
    assert by_adapter[None].digest is None


def test_the_time_of_all_adapters_is_the_time_of_all_steps(
    llama: World, engine: EngineUnderTest
) -> None:
    engine.run([(PROMPT, llama.adapters["lora"]), (PROMPT, llama.adapters["mlp"]), (PROMPT, None)])
    shares = [
        v
        for n, own, v in samples(engine.engine._metrics)
        if n == "finlora_adapter_seconds_total" and own["adapter"] != OTHER_LABEL
    ]
    assert len(shares) == 3
    assert min(shares) > 0
    total = value(engine.engine._metrics, "finlora_step_seconds_sum")
    assert sum(shares) == pytest.approx(total)


def test_an_answer_of_the_model_is_counted_as_the_label_it_is(
    llama: World, engine: EngineUnderTest
) -> None:
    adapter = llama.adapters["lora"]
    answer = engine.finish_one(PROMPT, adapter, GREEDY).text.strip()
    assert answer
    engine.finish_one(PROMPT, with_labels(adapter, ["never said", answer]), GREEDY)
    engine.finish_one(PROMPT, with_labels(adapter, ["never said", "nor this"]), GREEDY)
    counted = {
        labels["label"]: count
        for name, labels, count in samples(engine.engine._metrics)
        if name == "finlora_predicted_labels_total"
    }
    assert counted == {answer: 1, "_other": 1}


def test_failed_loads_are_counted(llama: World, engine: EngineUnderTest) -> None:
    events = listen(engine)
    engine.add(PROMPT, replace(llama.adapters["lora"], name="broken", digest="0" * 64))
    while engine.engine.has_requests:
        engine.step()
    metrics = engine.engine._metrics
    assert value(metrics, "finlora_adapter_load_failures_total", adapter=OTHER_LABEL) == 1
    assert value(metrics, "finlora_requests_total", adapter="broken", reason="error") == 1
    assert [event.error for event in events] == ["AdapterLoadError"]
    assert events[0].queue_seconds is None


def test_rows_that_are_not_finite_are_counted(engine: EngineUnderTest) -> None:
    embeddings = engine.engine._runner._runner._model.get_input_embeddings()  # type: ignore[attr-defined]
    with torch.no_grad():
        embeddings.weight[499] = float("nan")
    engine.add([5, 499, 6], None)
    while engine.engine.has_requests:
        engine.step()
    assert value(engine.engine._metrics, "finlora_non_finite_rows_total", adapter="_base") == 1


def test_memory_of_a_prefix_is_seen(engine: EngineUnderTest) -> None:
    assert engine.engine.stats().prefix_cache_bytes == 0
    engine.finish_one(PROMPT, None, GREEDY)
    assert 0 < engine.engine.stats().prefix_cache_bytes < engine.engine.stats().kv_cache_bytes


def test_a_cpu_has_no_cuda_memory() -> None:
    assert cuda_bytes(torch.device("cpu")) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_memory_is_the_allocators() -> None:
    before = cuda_bytes(torch.device("cuda"))["allocated"]
    held = torch.zeros(1 << 20, device="cuda")
    now = cuda_bytes(torch.device("cuda"))
    assert now["allocated"] - before == held.nbytes
    assert now["peak"] >= now["allocated"]
