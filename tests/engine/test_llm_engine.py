"""Requests through the whole engine: how they end, what they release, what they survive."""

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from finlora.engine.request import FinishReason, RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import (
    AdapterIncompatibleError,
    AdapterLoadError,
    EngineError,
    PromptTooLongError,
    RequestError,
)
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import GREEDY, EngineUnderTest, register_folder
from tests.engine.test_parity import prompts

PROMPT = prompts(2)[1]


def outputs_of(engine: EngineUnderTest, request_id: str) -> list[RequestOutput]:
    outputs = []
    while engine.engine.has_requests:
        outputs += [o for o in engine.step() if o.request_id == request_id]
    return outputs


@pytest.mark.parametrize("stop", [(), ("er", "in"), ("quite another text",)])
def test_streamed_equals_unstreamed(
    llama: World, make_engine: EngineMaker, stop: tuple[str, ...]
) -> None:
    engine = make_engine(llama, prefix_cache=False)  # float32 sums depend on the number of rows
    params = replace(GREEDY, max_tokens=40, stop=stop, logprobs=1)
    whole = engine.finish_one(PROMPT, llama.adapters["mlp"], params)
    streamed = outputs_of(
        engine, engine.add(PROMPT, llama.adapters["mlp"], replace(params, stream=True))
    )
    assert len(streamed) > 1
    assert "".join(o.text for o in streamed) == whole.text
    assert sum((o.token_ids for o in streamed), ()) == whole.token_ids
    assert sum((o.logprobs or () for o in streamed), ()) == whole.logprobs
    assert [o.finish_reason for o in streamed[:-1]] == [None] * (len(streamed) - 1)
    assert streamed[-1].finish_reason == whole.finish_reason
    assert streamed[-1].stop_reason == whole.stop_reason
    assert not any(s in whole.text for s in stop)


def test_eos_ends_a_request_unless_it_is_ignored(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    eos = engine.engine.spec.eos_token_ids[0]
    params = SamplingParams(temperature=0, max_tokens=5, logit_bias={eos: 100})
    ended = engine.finish_one(PROMPT, None, params)
    assert (ended.token_ids, ended.text) == ((eos,), "")
    assert ended.finish_reason is FinishReason.STOP
    ignored = engine.finish_one(PROMPT, None, replace(params, ignore_eos=True))
    assert ignored.token_ids == (eos,) * 5
    assert ignored.finish_reason is FinishReason.LENGTH


def test_a_stop_token_ends_a_request_and_is_told(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    first = engine.finish_one(PROMPT, None, GREEDY).token_ids[2]
    ended = engine.finish_one(PROMPT, None, replace(GREEDY, stop_token_ids=(first,)))
    assert ended.stop_reason == first
    assert ended.finish_reason is FinishReason.STOP


def test_no_tokens_asked_for_only_the_prompt_is_run(llama: World, make_engine: EngineMaker) -> None:
    output = make_engine(llama).finish_one(PROMPT, None, SamplingParams(max_tokens=0))
    assert (output.token_ids, output.text) == ((), "")
    assert output.finish_reason is FinishReason.LENGTH


def test_what_cannot_be_served_is_refused_at_once(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama, max_model_len=64, max_loras=0)
    with pytest.raises(PromptTooLongError, match="64"):
        engine.add([1] * 60, None, SamplingParams(max_tokens=5))
    engine.add([1] * 60, None, SamplingParams(max_tokens=4))
    with pytest.raises(RequestError):
        engine.add([], None)
    with pytest.raises(AdapterIncompatibleError, match="max_loras"):
        engine.add([1], llama.adapters["lora"])


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 6])
def test_an_aborted_request_leaves_nothing_at_any_stage(
    llama: World, make_engine: EngineMaker, num_steps: int
) -> None:
    engine = make_engine(llama, max_num_batched_tokens=16)
    doomed = engine.add(PROMPT, llama.adapters["dora"])
    other = engine.add(PROMPT, llama.adapters["lora"])
    for _ in range(num_steps):
        engine.step()
    engine.engine.abort_request(doomed)
    engine.engine.abort_request("never heard of")
    assert set(engine.finish()) == {other}
    engine.engine.check_idle()


def test_a_broken_adapter_fails_only_its_own_requests(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    good = llama.adapters["lora"]
    broken = replace(good, name="broken", digest="0" * 64)  # its files no longer match it
    lost = engine.add(PROMPT, broken)
    fine = engine.add(PROMPT, good)
    outputs: dict[str, RequestOutput] = {}
    while engine.engine.has_requests:
        outputs |= {o.request_id: o for o in engine.step()}
    assert isinstance(outputs[lost].error, AdapterLoadError)
    assert outputs[fine].finish_reason is FinishReason.LENGTH


def test_a_rank_above_the_servers_limit_is_told(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama, max_lora_rank=8)
    request_id = engine.add(PROMPT, llama.adapters["mlp"])
    output = outputs_of(engine, request_id)[-1]
    assert isinstance(output.error, AdapterIncompatibleError)


def test_the_engine_survives_a_step_that_fails(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    expected = engine.finish_one(PROMPT, llama.adapters["lora"], GREEDY).token_ids

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.recorder, "run", fail)
        output = outputs_of(engine, engine.add(PROMPT, llama.adapters["lora"]))[-1]
    assert isinstance(output.error, EngineError)
    engine.engine.check_idle()
    assert engine.finish_one(PROMPT, llama.adapters["lora"], GREEDY).token_ids == expected


def test_a_request_whose_text_cannot_be_made_ends_alone(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    doomed, fine = engine.add(PROMPT), engine.add(PROMPT)
    request = engine.engine._requests[doomed]

    def fail(_: int) -> bool:
        raise ValueError("no such token")

    monkeypatch.setattr(request, "detokenizer", SimpleNamespace(append=fail, take=lambda **_: ""))
    outputs: dict[str, RequestOutput] = {}
    while engine.engine.has_requests:
        outputs |= {o.request_id: o for o in engine.step()}
    assert isinstance(outputs[doomed].error, EngineError)
    assert outputs[fine].finish_reason is FinishReason.LENGTH


def test_logits_that_are_not_finite_end_one_request_only(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    expected = engine.finish_one(PROMPT, None, GREEDY).token_ids
    embeddings = engine.engine._runner._runner._model.get_input_embeddings()  # type: ignore[attr-defined]
    with torch.no_grad():
        embeddings.weight[499] = float("nan")
    poisoned = engine.add([5, 499, 6], None)
    fine = engine.add(PROMPT, None)
    outputs: dict[str, RequestOutput] = {}
    while engine.engine.has_requests:
        outputs |= {o.request_id: o for o in engine.step()}
    assert isinstance(outputs[poisoned].error, EngineError)
    assert outputs[fine].token_ids == expected


def test_a_replaced_adapter_serves_its_requests_to_the_end(
    llama: World, make_engine: EngineMaker
) -> None:
    """In-flight requests keep the old weights, later ones get the new, in the same batches."""
    engine = make_engine(llama)
    params = replace(GREEDY, max_tokens=12)
    old = register_folder(llama.registry, "changing", llama.folders["lora"])
    old_tokens = engine.finish_one(PROMPT, old, params).token_ids
    # What will be new is in RAM: it joins the batch however long files take to be read.
    engine.warm([llama.adapters["mlp"]])
    in_flight = engine.add(PROMPT, old, params)
    for _ in range(3):
        engine.step()
    new = register_folder(llama.registry, "changing", llama.folders["mlp"])
    assert llama.registry.resolve("changing").digest == new.digest
    late = engine.add(PROMPT, new, params)
    outputs = engine.finish()
    assert outputs[in_flight].token_ids == old_tokens
    assert outputs[late].token_ids == engine.finish_one(PROMPT, new, params).token_ids
    assert outputs[late].token_ids != old_tokens
    assert any(
        {s.request.digest for s in batch.sequences} == {old.digest, new.digest}
        for batch in engine.recorder.batches
    )


def test_more_adapters_than_slots_all_get_their_turn(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama, max_loras=2, max_num_seqs=4)
    adapters = list(llama.adapters.values())
    ids = [engine.add(PROMPT, adapters[i % len(adapters)]) for i in range(40)]
    outputs = engine.finish()
    assert set(outputs) == set(ids)
    for batch in engine.recorder.batches:
        assert len({s.request.digest for s in batch.sequences}) <= 2


def test_a_thousand_loads_leave_memory_flat(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama, max_loras=1, adapter_cache_bytes=1)
    two = [llama.adapters["lora"], llama.adapters["mlp"]]
    process = psutil.Process()
    resident = []
    for cycle in range(1000):  # they take the one slot from each other, each time from disk
        engine.finish_one([1, 2], two[cycle % 2], SamplingParams(max_tokens=1))
        engine.recorder.clear()
        if cycle in (200, 999):
            resident.append(process.memory_info().rss)
    assert resident[1] - resident[0] < 20 * 2**20
