"""Layers computed by our own kernel of AVX512_BF16 give what bitsandbytes' packed layers mean."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from finlora.bases.dequantization import served_weight
from finlora.config import Quantization
from finlora.engine import paired_linear
from finlora.engine.paired_linear import PairedLinear
from finlora.engine.wide import StepRows
from finlora.model import load_base, pack
from finlora.native import library
from tests.engine.conftest import World
from tests.native.kernels import needs_avx512_kernels

pytestmark = needs_avx512_kernels
SHAPES = [(1, 1), (1, 13), (3, 40), (1, 300)]


def load(world: World, quantization: Quantization = Quantization.NF4) -> nn.Module:
    return load_base(str(world.base), quantization, device="cpu", dtype=torch.bfloat16).model


def layers(model: nn.Module) -> list[Linear4bit]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.FP4])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # without and with biases
def test_as_close_to_the_meant_weights_as_the_packed_kernel(
    worlds: Callable[[str], World], architecture: str, quantization: Quantization
) -> None:
    model = load(worlds(architecture), quantization)
    own = [PairedLinear.of(layer) for layer in layers(model)]
    weights = [served_weight(layer, packed=True).double() for layer in layers(model)]
    pack(model)  # type: ignore[arg-type]
    for layer, packed, weight in zip(own, layers(model), weights, strict=True):
        for shape in SHAPES:
            x = torch.randn(*shape, layer.in_features, dtype=torch.bfloat16)
            bias = 0 if layer.bias is None else layer.bias.double()
            with torch.inference_mode():
                expected = x.double() @ weight.T + bias
                error = (layer(x).double() - expected).abs().max()
                assert error <= 1.2 * (packed(x).double() - expected).abs().max()


def test_codes_take_as_much_memory_as_before_and_scales_two_bytes(llama: World) -> None:
    layer = layers(load(llama))[0]
    paired = PairedLinear.of(layer)
    assert paired.weight.nbytes == layer.weight.nbytes
    assert paired.scales.nbytes == layer.in_features * layer.out_features // 64 * 2


@pytest.mark.parametrize("has_amx", [False, True])
def test_prompts_take_a_copy_only_where_the_library_has_faster_products(
    llama: World, monkeypatch: pytest.MonkeyPatch, has_amx: bool
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": has_amx})
    layer = layers(load(llama))[0]
    weight = served_weight(layer, packed=True).to(torch.bfloat16)
    paired, rows = PairedLinear.of(layer), StepRows(num_decodes=7)
    x = torch.randn(20, layer.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        before = paired(x)
        assert paired.widen(rows) == (weight.nbytes if has_amx else 0)
        assert paired.computes_alone != has_amx
        assert torch.equal(paired(x)[:7], before[:7])
        prompt = F.linear(x, weight)[7:] if has_amx else before[7:]
        assert torch.equal(paired(x)[7:], prompt)


def test_what_the_kernel_does_not_take(llama: World, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers(load(llama))[0]
    assert paired_linear.fits(layer)
    layer.compute_dtype = torch.float32
    assert not paired_linear.fits(layer)
    layer.compute_dtype = torch.bfloat16
    layer.support_avx512bf16_for_cpu = False  # its numbers are others
    assert not paired_linear.fits(layer)
    layer.support_avx512bf16_for_cpu = True
    monkeypatch.setattr(layer, "out_features", 48)
    assert not paired_linear.fits(layer)
    monkeypatch.undo()
    monkeypatch.setattr(library, "avx512_obstacle", lambda: "none is there")
    assert not paired_linear.fits(layer)
