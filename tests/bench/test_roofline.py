from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from finlora.bases.spec import LinearShape
from finlora.bench.roofline import ModelCost, Rates, decode_bound, measure_rates
from finlora.bench.subject import Subject

RATES = Rates(
    dtype="bfloat16", matmul=1e12, matmul_model_shapes=8e11, read=1e10, rows=2048, num_threads=2
)


def test_the_costs_are_those_of_the_model(base: Path, made: Subject) -> None:
    """Counted a second time, on the model as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    linears = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert made.cost.linear_parameters == sum(m.weight.numel() for m in linears)
    assert made.cost.head_parameters == model.lm_head.weight.numel()
    assert made.cost.head_bytes == model.lm_head.weight.numel() * made.dtype.itemsize
    cache = model(torch.arange(5)[None], use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert made.cost.kv_bytes_per_token * 5 == numbers * made.dtype.itemsize


def test_four_bits_and_their_scales_are_what_is_read(made: Subject) -> None:
    bits = made.cost.linear_bytes * 8 / made.cost.linear_parameters
    assert 4.0 < bits < 4.6


def test_attention_costs_two_products_of_every_head(made: Subject) -> None:
    heads, head_dim, layers = 4, 32, 2
    assert made.cost.attention_flops_per_pair == layers * heads * (2 * head_dim + 2 * head_dim)


COST = ModelCost(
    linear_parameters=1_000_000,
    head_parameters=100_000,
    linear_bytes=530_000,
    head_bytes=200_000,
    kv_bytes_per_token=1_000,
    attention_flops_per_pair=2_000,
)


def test_one_sequence_is_bound_by_reading_and_many_by_computing() -> None:
    one, many = (decode_bound(COST, RATES, size, 10) for size in (1, 4096))
    assert one.reading == pytest.approx((530_000 + 200_000 + 10 * 1_000) / 1e10)
    assert one.computing == pytest.approx((2 * 1_100_000 + 10 * 2_000) / 1e12)
    assert one.overlapped == one.reading
    assert many.overlapped == many.computing == pytest.approx(4096 * 2.22e6 / 1e12)
    assert one.serial == one.reading + one.computing


def test_rates_are_those_of_this_machine() -> None:
    shapes = [LinearShape(64, 128), LinearShape(64, 128), LinearShape(128, 64)]
    rates = measure_rates(
        shapes,
        dtype=torch.float32,
        device=torch.device("cpu"),
        rows=64,
        repeats=3,
        large_sides=(256,),
        read_bytes=2**20,
    )
    assert rates.dtype == "float32"
    assert rates.num_threads == torch.get_num_threads()
    # Between a hand-held calculator and the fastest machine there is.
    assert all(1e6 < rate < 1e16 for rate in (rates.matmul, rates.matmul_model_shapes, rates.read))
