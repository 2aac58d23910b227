"""Choices beside other requests: batched, cut, preempted, ended, and failing alone."""

import math
from dataclasses import replace

import pytest

from finlora.adapters.label_task import softmax
from finlora.engine.batch import Batch
from finlora.engine.model_runner import BatchLogits
from finlora.engine.request import FinishReason
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree, normalised
from finlora.evaluation.label_scorer import LabelScorer
from tests.engine.choices import (
    END,
    GREEDY,
    SCORED,
    assert_scored_alike,
    label_logprobs,
    mixed_rows,
    run,
)
from tests.engine.conftest import EngineMaker, World
from tests.engine.test_parity import prompts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 7},  # prompts and trees run in chunks
        {"max_num_batched_tokens": 60},  # trees in other steps than their prompts
        {"max_num_seqs": 2},
        {"prefix_cache": False},
        {"max_loras": 1},
    ],
    ids=["batched", "chunked", "narrow", "two at a time", "uncached", "one slot"],
)
def test_alone_and_together(
    llama: World, make_engine: EngineMaker, settings: dict[str, int]
) -> None:
    rows = mixed_rows(llama)
    alone = make_engine(llama)
    expected = [run(alone, [row], SCORED)[0] for row in rows]
    engine = make_engine(llama, **settings)
    assert_scored_alike(run(engine, rows, SCORED), expected)
    assert_scored_alike(run(engine, rows, SCORED), expected)  # from the prefix cache
    plain = run(engine, rows, GREEDY)
    assert [o.token_ids for o in plain] == [o.token_ids for o in expected]


def test_preempted_and_scored_again(llama: World, make_engine: EngineMaker) -> None:
    rows = [*mixed_rows(llama), *mixed_rows(llama)]
    expected = run(make_engine(llama), rows, SCORED)
    layout_bytes = 2 * 2 * 2 * 32 * 4  # layers, key and value, heads, head size, float32
    engine = make_engine(
        llama, max_model_len=128, kv_cache_bytes=130 * layout_bytes, max_num_batched_tokens=16
    )
    others = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    for prompt in prompts(3):
        engine.add(prompt, None, others)
    ids = [engine.add(*row, SCORED) for row in rows]
    outputs = engine.finish()
    assert engine.engine._scheduler.num_preemptions > 0
    assert_scored_alike([outputs[i] for i in ids], expected)


def test_more_labels_than_one_step_holds(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama, max_model_len=512, kv_cache_bytes=32 << 20)
    labels = [[10 + i, 200 + i, 350 + i] for i in range(120)]
    params = SamplingParams(choice=ChoiceTree(labels), logprobs=0, temperature=0)
    prompt, adapter = prompts(2)[1], llama.adapters["dora"]
    output = engine.finish_one(prompt, adapter, params)
    assert len(engine.recorder.batches) == 2
    targets = [[*label, END] for label in labels]
    expected = softmax(
        LabelScorer(engine.engine).target_logprobs([prompt] * len(targets), targets, adapter)
    )
    found = [math.exp(value) for value in normalised(label_logprobs(output))]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("num_steps", range(7))
def test_a_request_can_be_ended_in_the_middle_of_its_tree(
    llama: World, make_engine: EngineMaker, num_steps: int
) -> None:
    engine = make_engine(llama, max_num_batched_tokens=4)
    prompt = prompts(1)[0] * 2
    request_id = engine.add(prompt, llama.adapters["lora"], SCORED)
    other = engine.add(prompt, None, SCORED)
    engine.warm([])
    for _ in range(num_steps):
        engine.step()
    engine.engine.abort_request(request_id)
    output = engine.finish().get(other)
    if output is not None:  # else it was done before
        assert output.finish_reason is FinishReason.STOP


def test_logits_that_are_not_finite_end_their_own_request(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    prompt = prompts(2)[1]
    inner = engine.recorder.run

    def run_with_a_fault(batch: Batch) -> BatchLogits:
        result = inner(batch)
        logits = result.next_token.clone()
        logits[0, 5] = math.inf  # the first branch of the first request
        return replace(result, next_token=logits)

    monkeypatch.setattr(engine.recorder, "run", run_with_a_fault)
    ids = [engine.add(prompt, None, SCORED) for _ in range(2)]
    outputs = {output.request_id: output for output in engine.step()}
    assert outputs[ids[0]].error is not None
    assert outputs[ids[1]].finish_reason is FinishReason.STOP
