"""Tokens from logits: greedy, truncated, penalised, seeded."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finlora.engine import sampler
from finlora.engine.sampler import Sampler, token_logprobs, uniform
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import EngineError, InvalidSamplingParamsError
from tests.engine.requests import make_request

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])


def draw_many(params: SamplingParams, logits: torch.Tensor = LOGITS, n: int = 400) -> Counter[int]:
    requests = [make_request([0], params, seed=seed) for seed in range(n)]
    sampled = Sampler().sample(logits.expand(n, -1), requests)
    return Counter(s.token_id for s in sampled if s.token_id is not None)


def test_greedy_takes_the_likeliest() -> None:
    assert draw_many(SamplingParams(temperature=0)) == {0: 400}


def test_draws_follow_the_distribution() -> None:
    counts = draw_many(SamplingParams(), n=4000)
    expected = LOGITS.softmax(-1)
    for token_id, probability in enumerate(expected.tolist()):
        assert counts[token_id] / 4000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(top_k=2), {0, 1}),
        (SamplingParams(top_p=0.6), {0, 1}),  # 0.56 alone is not enough
        (SamplingParams(top_p=0.5), {0}),
        (SamplingParams(min_p=0.3), {0, 1}),  # 0.37 of the likeliest stays, 0.22 goes
        (SamplingParams(logit_bias={3: 100.0}), {3}),
        (SamplingParams(top_k=3, logit_bias={0: -100.0}), {1, 2, 3}),
        (SamplingParams(temperature=1e-310), {0}),
        (SamplingParams(temperature=1e-310, top_p=0.9, top_k=3, min_p=0.1), {0}),
    ],
)
def test_truncation_leaves_exactly_what_it_says(params: SamplingParams, allowed: set[int]) -> None:
    assert set(draw_many(params)) == allowed


def test_penalties_push_repeated_tokens_down() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    for params in (
        SamplingParams(temperature=0, presence_penalty=0.5),
        SamplingParams(temperature=0, frequency_penalty=0.5),
        SamplingParams(temperature=0, repetition_penalty=1.5),
    ):
        request = make_request([2], params)
        assert Sampler().sample(logits, [request])[0].token_id == 0
        request.output_token_ids.append(0)
        assert Sampler().sample(logits, [request])[0].token_id == 1


def test_frequency_counts_and_presence_does_not() -> None:
    logits = torch.tensor([[1.0, 0.9]])
    request = make_request([0], SamplingParams(temperature=0, frequency_penalty=0.15))
    request.output_token_ids += [0, 0, 1]
    assert Sampler().sample(logits, [request])[0].token_id == 1
    request = make_request([0], SamplingParams(temperature=0, presence_penalty=0.15))
    request.output_token_ids += [0, 0, 1]
    assert Sampler().sample(logits, [request])[0].token_id == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_the_draw_is_a_function_of_seed_and_position(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1
    assert uniform(seed, position) == uniform(seed, position)
    assert uniform(seed, position) != uniform(seed, position + 1)


def test_a_seeded_draw_does_not_depend_on_batch_mates() -> None:
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    requests = [make_request([0], SamplingParams(top_p=0.9), seed=seed) for seed in range(8)]
    together = Sampler().sample(logits, requests)
    alone = [Sampler().sample(logits[i : i + 1], requests[i : i + 1])[0] for i in range(8)]
    assert together == alone


def test_a_row_that_is_not_finite_gets_no_token_and_harms_nobody() -> None:
    logits = torch.stack([LOGITS, LOGITS * float("nan"), LOGITS])
    requests = [make_request([0], SamplingParams(temperature=0)) for _ in range(3)]
    assert [s.token_id for s in Sampler().sample(logits, requests)] == [0, None, 0]


def test_a_row_that_cannot_be_drawn_ends_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [make_request([0], SamplingParams(top_k=k)) for k in (2, 1, 2)]

    def fail_for_one(probabilities: torch.Tensor, params: SamplingParams) -> object:
        if params.top_k == 1:
            raise IndexError
        return truncate(probabilities, params)

    truncate = sampler._truncate
    monkeypatch.setattr(sampler, "_truncate", fail_for_one)
    sampled = Sampler().sample(LOGITS.expand(3, -1), requests)
    assert [s.token_id is None for s in sampled] == [False, True, False]
    assert isinstance(sampled[1].error, EngineError)


def test_logprobs_are_the_models_own_whatever_the_temperature() -> None:
    request = make_request([0], SamplingParams(temperature=0, logprobs=2, logit_bias={1: 50}))
    sampled = Sampler().sample(LOGITS[None], [request])[0]
    expected = LOGITS.log_softmax(-1)
    assert sampled.token_id == 1
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(expected[1].item())
    assert [token_id for token_id, _ in sampled.logprob.top] == [0, 1]


def test_token_logprobs_of_many_rows() -> None:
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    entries = token_logprobs(rows, [4, 4], 0)
    assert entries[0].logprob == pytest.approx(LOGITS.log_softmax(-1)[4].item())
    assert entries[1].logprob == pytest.approx(LOGITS.log_softmax(-1)[0].item())
    assert entries[0].top == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", float("nan")), ("top_p", 0), ("top_p", 1.1),
        ("top_k", -1), ("min_p", 2), ("presence_penalty", 3), ("frequency_penalty", float("inf")),
        ("repetition_penalty", 1e-200), ("logit_bias", {1: 101.0}), ("logprobs", 21),
        ("prompt_logprobs", -1), ("max_tokens", -1), ("stop", ("",)),
    ],
)  # fmt: skip
def test_out_of_range_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidSamplingParamsError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
