"""Which kind of layer takes the place of an unpacked one, and what its scales add."""

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from finlora.config import Quantization
from finlora.engine import panel_linear
from finlora.engine.panel_linear import PanelLinear
from finlora.engine.unpacked_layers import replace_unpacked_layers, unpacked_layers
from finlora.engine.unpacked_linear import UnpackedLinear
from finlora.model import load_base, pack
from finlora.native import library
from tests.engine.conftest import World


def load(world: World, dtype: torch.dtype) -> nn.Module:
    """The base, none of whose layers will ever be packed."""
    base = load_base(str(world.base), Quantization.NF4, dtype=dtype, device="cpu", training=True)
    return base.model


@pytest.mark.parametrize("compiled", [True, False])
def test_scales_are_written_out_and_counted(
    llama: World, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if compiled and library.obstacle():
        pytest.skip(f"compiled kernels: {library.obstacle()}")
    if not compiled:
        monkeypatch.setattr(library, "obstacle", lambda: "none is there")
    model = load(llama, torch.float32)
    num_weights = sum(m.weight.numel() * 2 for m in model.modules() if isinstance(m, Linear4bit))
    added = replace_unpacked_layers(model)
    replaced = list(unpacked_layers(model))
    assert {type(layer) for layer in replaced} == {PanelLinear if compiled else UnpackedLinear}
    held = sum(layer.scales.nbytes for layer in replaced)
    assert held == num_weights // 64 * 4
    assert 0 < added < held


def test_in_bf16_layers_are_tiled(llama: World) -> None:
    model = load(llama, torch.bfloat16)
    replace_unpacked_layers(model)
    assert {type(layer) for layer in unpacked_layers(model)} == {UnpackedLinear}


def test_what_fits_neither_stays_as_it_is(llama: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_linear, "fits", lambda _: False)
    monkeypatch.setattr("finlora.engine.unpacked_linear.fits", lambda _: False)
    model = load(llama, torch.float32)
    assert replace_unpacked_layers(model) == 0
    assert not list(unpacked_layers(model))
    assert any(isinstance(module, Linear4bit) for module in model.modules())


def test_packed_layers_are_left_alone(llama: World) -> None:
    model = load_base(str(llama.base), Quantization.NF4, dtype=torch.bfloat16, device="cpu").model
    if not pack(model):
        pytest.skip("this CPU has no packed kernel")
    assert replace_unpacked_layers(model) == 0
    assert not list(unpacked_layers(model))
