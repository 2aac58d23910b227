"""Dequantised tile by tile, a layer computes what bitsandbytes computes with the whole of it."""

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from finlora.config import Quantization
from finlora.engine import unpacked_linear
from finlora.engine.unpacked_linear import UnpackedLinear, replace_unpacked_layers, unpacked_layers
from finlora.model import load_base, pack
from tests.engine.conftest import World

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def load(world: World, quantization: Quantization, dtype: torch.dtype) -> nn.Module:
    """The base, none of whose layers will ever be packed."""
    return load_base(str(world.base), quantization, dtype=dtype, device="cpu", training=True).model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.FP4])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # without and with biases
@pytest.mark.parametrize("tile_bytes", [1, 10_000, 2**20])
def test_the_same_as_bitsandbytes(
    worlds: Callable[[str], World],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    quantization: Quantization,
    dtype: torch.dtype,
    tile_bytes: int,
) -> None:
    monkeypatch.setattr(unpacked_linear, "TILE_BYTES", tile_bytes)
    model = load(worlds(architecture), quantization, dtype)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    replace_unpacked_layers(model)
    assert len(list(unpacked_layers(model))) == len(layers)
    for name, layer in layers.items():
        tiled = model.get_submodule(name)
        for shape in [(1, 1), (3, 40)]:
            x = torch.randn(*shape, layer.in_features, dtype=dtype)
            with torch.inference_mode():
                torch.testing.assert_close(
                    tiled(x), layer(x), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
                )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_are_bitsandbytes_own(llama: World, dtype: torch.dtype) -> None:
    """A product with the unit vectors shows them, bit by bit, tiled and as a copy."""
    model = load(llama, Quantization.NF4, dtype)
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(layer, Linear4bit)
    tiled = UnpackedLinear.of(layer)
    units = torch.eye(layer.in_features, dtype=dtype)
    with torch.inference_mode():
        expected = layer(units)
        assert torch.equal(tiled(units), expected)
        assert tiled.widen() == expected.nbytes
        assert torch.equal(tiled(units), expected)


def test_scales_are_written_out_and_counted(llama: World) -> None:
    model = load(llama, Quantization.NF4, torch.float32)
    num_weights = sum(m.weight.numel() * 2 for m in model.modules() if isinstance(m, Linear4bit))
    added = replace_unpacked_layers(model)
    held = sum(layer.scales.nbytes for layer in unpacked_layers(model))
    assert held == num_weights // 64 * 4
    assert 0 < added < held


def test_packed_layers_are_left_alone(llama: World) -> None:
    model = load_base(str(llama.base), Quantization.NF4, dtype=torch.bfloat16, device="cpu").model
    if not pack(model):
        pytest.skip("this CPU has no packed kernel")
    assert replace_unpacked_layers(model) == 0
    assert not list(unpacked_layers(model))
