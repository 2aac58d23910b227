"""Dequantised tile by tile, a layer computes what bitsandbytes computes with the whole of it."""

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from finlora.config import Quantization
from finlora.engine import unpacked_linear
from finlora.engine.unpacked_linear import UnpackedLinear, fits
from finlora.model import load_base
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
    for layer in [module for module in model.modules() if isinstance(module, Linear4bit)]:
        assert fits(layer)
        tiled = UnpackedLinear.of(layer)
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
