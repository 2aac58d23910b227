"""Layers computed by our own kernel give what bitsandbytes gives with the whole weight."""

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from finlora.config import Quantization
from finlora.engine import panel_linear
from finlora.engine.panel_linear import PanelLinear
from finlora.model import load_base
from finlora.native import library
from tests.engine.conftest import World
from tests.native.kernels import needs_kernels

pytestmark = needs_kernels


def load(world: World, quantization: Quantization = Quantization.NF4) -> nn.Module:
    """The base in float32, none of whose layers will ever be packed."""
    base = load_base(
        str(world.base), quantization, dtype=torch.float32, device="cpu", training=True
    )
    return base.model


def layers(model: nn.Module) -> list[Linear4bit]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


@pytest.mark.parametrize("max_rows", [None, 2], ids=["kernel", "tiles"])
@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.FP4])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # without and with biases
def test_the_same_as_bitsandbytes(
    worlds: Callable[[str], World],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    quantization: Quantization,
    max_rows: int | None,
) -> None:
    monkeypatch.setattr(panel_linear, "max_rows", lambda: max_rows)
    monkeypatch.setattr(panel_linear, "TILE_BYTES", 10_000)
    for layer in layers(load(worlds(architecture), quantization)):
        panels = PanelLinear.of(layer)
        for shape in [(1, 1), (3, 40)]:
            x = torch.randn(*shape, layer.in_features)
            with torch.inference_mode():
                torch.testing.assert_close(panels(x), layer(x), atol=1e-5, rtol=1e-5)


def test_codes_take_as_much_memory_as_before(llama: World) -> None:
    layer = layers(load(llama))[0]
    stored: Tensor = layer.weight
    panels = PanelLinear.of(layer)
    assert panels.weight.nbytes == stored.nbytes
    assert panels.scales.nbytes == layer.in_features * layer.out_features // 64 * 4


def test_a_copy_is_kept_only_where_the_kernel_is_not_the_fastest(
    llama: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layers(load(llama))[0]
    x = torch.randn(40, layer.in_features)
    monkeypatch.setattr(panel_linear, "max_rows", lambda: None)
    assert PanelLinear.of(layer).widen() == 0
    monkeypatch.setattr(panel_linear, "max_rows", lambda: 8)
    panels = PanelLinear.of(layer)
    with torch.inference_mode():
        before = panels(x)
        assert panels.widen() == layer.in_features * layer.out_features * 4
        torch.testing.assert_close(panels(x), before, atol=1e-5, rtol=1e-5)


def test_torchs_own_products_take_over_only_beside_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, limit in {"AVX2": None, "AVX512": 64}.items():
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda c=capability: c)
        assert panel_linear.max_rows() == limit


def test_what_the_kernel_does_not_take(llama: World, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers(load(llama))[0]
    assert panel_linear.fits(layer)
    layer.compute_dtype = torch.bfloat16
    assert not panel_linear.fits(layer)
    layer.compute_dtype = torch.float32
    monkeypatch.setattr(layer, "out_features", 24)
    assert not panel_linear.fits(layer)
    monkeypatch.undo()
    monkeypatch.setattr(library, "obstacle", lambda: "none is there")
    assert not panel_linear.fits(layer)
