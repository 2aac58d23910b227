"""A request's result does not depend on who or what shares the engine with it."""

from dataclasses import replace

import pytest
import torch

from finlora.adapters.adapter import Adapter
from finlora.engine.sampling_params import SamplingParams
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import GREEDY, EngineUnderTest
from tests.engine.test_parity import prompts

Rows = list[tuple[list[int], Adapter | None]]
Results = list[tuple[tuple[int, ...], list[torch.Tensor]]]
LONGER = replace(GREEDY, max_tokens=16)


def mixed_rows(world: World) -> Rows:
    adapters = [None, *world.adapters.values(), world.adapters["lora"]]
    return list(zip(prompts(len(adapters)), adapters, strict=True))


def alone(engine: EngineUnderTest, rows: Rows) -> Results:
    return [engine.run([row], LONGER)[0] for row in rows]


def assert_same(results: Results, expected: Results) -> None:
    for (tokens, logits), (expected_tokens, expected_logits) in zip(results, expected, strict=True):
        assert tokens == expected_tokens
        for row, expected_row in zip(logits[-16:], expected_logits[-16:], strict=True):
            torch.testing.assert_close(row, expected_row, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 7},  # prompts run in chunks
        {"max_num_seqs": 2},
        {"prefix_cache": False},
        {"max_loras": 1},  # every change of adapter evicts the last one
        {"max_loras": 3, "adapter_cache_bytes": 1},  # and it comes back from disk
    ],
    ids=["batched", "chunked", "two at a time", "uncached", "one slot", "from disk"],
)
def test_alone_and_together(
    llama: World, make_engine: EngineMaker, settings: dict[str, int]
) -> None:
    expected = alone(make_engine(llama), mixed_rows(llama))
    engine = make_engine(llama, **settings)
    assert_same(engine.run(mixed_rows(llama), LONGER), expected)


@pytest.mark.usefixtures("without_kernels")
def test_alone_and_together_where_no_kernels_were_compiled(
    llama: World, make_engine: EngineMaker
) -> None:
    expected = alone(make_engine(llama), mixed_rows(llama))
    engine = make_engine(llama, max_num_batched_tokens=7)
    assert_same(engine.run(mixed_rows(llama), LONGER), expected)


def test_preempted_and_computed_again(llama: World, make_engine: EngineMaker) -> None:
    rows = mixed_rows(llama)
    expected = alone(make_engine(llama), rows)
    layout_bytes = 2 * 2 * 2 * 32 * 4  # layers, key and value, heads, head size, float32
    engine = make_engine(llama, max_model_len=128, kv_cache_bytes=130 * layout_bytes)
    engine.warm(llama.adapters.values())
    results = engine.run(rows, LONGER)
    assert engine.engine._scheduler.num_preemptions > 0
    assert_same(results, expected)


def test_after_every_adapter_was_evicted(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama, max_loras=2, adapter_cache_bytes=1)
    rows = mixed_rows(llama)
    before = alone(engine, rows)
    assert_same(alone(engine, list(reversed(rows))), list(reversed(before)))


def test_a_seed_gives_the_same_draw_alone_and_in_a_batch(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    seeded = SamplingParams(seed=5, max_tokens=20, temperature=1.5, top_p=0.95, ignore_eos=True)
    prompt, adapter = prompts(1)[0], llama.adapters["lora"]
    (first, _), *_ = engine.run([(prompt, adapter)], seeded)
    among_others = engine.run([*mixed_rows(llama), (prompt, adapter)], seeded)
    assert among_others[-1][0] == first
    (other, _), *_ = engine.run([(prompt, adapter)], replace(seeded, seed=6))
    assert other != first


def test_prompt_logprobs_do_not_depend_on_chunks(llama: World, make_engine: EngineMaker) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    prompt = prompts(5)[4]
    found = []
    for limit in (2048, 9):
        engine = make_engine(llama, max_num_batched_tokens=limit)
        request_id = engine.add(prompt, llama.adapters["dora"], params)
        entries = engine.finish()[request_id].prompt_logprobs
        assert entries is not None
        assert entries[0] is None
        assert [e.token_id for e in entries if e] == prompt[1:]
        found.append(torch.tensor([e.logprob for e in entries if e]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_cached_beginnings_change_nothing(llama: World, make_engine: EngineMaker) -> None:
    rows = mixed_rows(llama)
    expected = alone(make_engine(llama, prefix_cache=False), rows)
    engine = make_engine(llama)
    for _ in range(3):  # the second and third time, everything but the last token is there
        assert_same(engine.run(rows, LONGER), expected)
    starts = {s.start for b in engine.recorder.batches[-16:] for s in b.sequences}
    assert min(starts) >= min(len(prompt) for prompt, _ in rows) - 1


def test_a_cached_beginning_belongs_to_one_adapter_version_and_salt(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    prompt = prompts(2)[1]

    def num_cached(adapter: Adapter | None, salt: str = "") -> int:
        request = engine.engine.make_request(
            f"{adapter}{salt}", prompt, GREEDY, adapter=adapter, cache_salt=salt
        )
        engine.engine.add_request(request)
        engine.finish()
        return request.num_cached_tokens

    adapter = llama.adapters["lora"]
    for owner in ((None, ""), (adapter, ""), (adapter, "mine"), (llama.adapters["mlp"], "")):
        assert num_cached(*owner) == 0
        assert num_cached(*owner) == len(prompt) - 1


def test_cached_beginnings_make_room_for_requests(llama: World, make_engine: EngineMaker) -> None:
    layout_bytes = 2 * 2 * 2 * 32 * 4
    engine = make_engine(llama, max_model_len=128, kv_cache_bytes=130 * layout_bytes)
    expected = alone(make_engine(llama), mixed_rows(llama))
    for _ in range(2):
        assert_same(alone(engine, mixed_rows(llama)), expected)
    engine.engine.check_idle()
