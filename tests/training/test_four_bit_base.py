from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from finlora.bases.dequantization import served_weight
from finlora.config import Quantization
from finlora.errors import BaseModelError
from finlora.model import LoadedBase, load_base, pack
from finlora.training.four_bit_base import (
    check_double_quantised,
    exchange_four_bit_layers,
    widen,
)
from finlora.training.four_bit_layer import FourBitLayer
from tests.native.kernels import needs_kernels

packs = pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no packed kernel")


@packs
def test_dequantised_weights_are_those_of_the_packed_kernel(
    load: Callable[..., LoadedBase], base_folder: Path
) -> None:
    source = load(dtype=torch.bfloat16)
    serving = load_base(str(base_folder), Quantization.NF4, device="cpu", dtype=torch.bfloat16)
    assert pack(serving.model) == len(serving.spec.linear_layers)
    for name in serving.spec.linear_layers:
        layer: Any = source.model.get_submodule(name)
        weight = served_weight(layer, packed=True)
        packed = serving.model.get_submodule(name)
        with torch.inference_mode():
            columns = packed(torch.eye(layer.in_features, dtype=torch.bfloat16))
            assert torch.equal(columns.T, weight.bfloat16())
            # With all columns at once they differ by the order of additions alone.
            x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(1))
            x = x.bfloat16()
            served, ours = packed(x), F.linear(x.float(), weight).bfloat16()
        assert (served != ours).float().mean() < 0.01


def test_unpacked_weights_are_what_the_library_dequantises(
    load: Callable[..., LoadedBase],
) -> None:
    base = load()
    for name in base.spec.linear_layers:
        layer: Any = base.model.get_submodule(name)
        x = torch.randn(3, layer.in_features)
        weight = served_weight(layer, packed=False)
        torch.testing.assert_close(layer(x), F.linear(x, weight), atol=1e-4, rtol=1e-4)


def test_nf4_is_nf4_with_double_quantisation(load: Callable[..., LoadedBase]) -> None:
    base = load()
    assert check_double_quantised(base.model) == len(base.spec.linear_layers) == 14
    with pytest.raises(BaseModelError, match="is not NF4"):
        check_double_quantised(load(Quantization.FP4).model)
    with pytest.raises(BaseModelError, match="no four-bit layers"):
        check_double_quantised(load(Quantization.NONE).model)


def test_widening_keeps_the_logits_and_freezes_the_weights(
    load: Callable[..., LoadedBase],
) -> None:
    base = load()
    ids = torch.tensor([[5, 9, 200, 31]])
    before = base.model(input_ids=ids).logits
    assert widen(base.model, torch.float32)
    assert not any(isinstance(module, Linear4bit) for module in base.model.modules())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    torch.testing.assert_close(base.model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)


@needs_kernels
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_our_kernels_take_the_layers_where_they_are_fastest(
    capability: str, load: Callable[..., LoadedBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load()
    ids = torch.tensor([[5, 9, 200, 31]])
    before = base.model(input_ids=ids).logits
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    exchange_four_bit_layers(base.model, torch.float32)
    found = {type(base.model.get_submodule(name)) for name in base.spec.linear_layers}
    assert found == {FourBitLayer if capability == "AVX2" else nn.Linear}
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    torch.testing.assert_close(base.model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)


def test_a_base_without_four_bit_layers_stays(load: Callable[..., LoadedBase]) -> None:
    assert not widen(load(Quantization.NONE).model, torch.float32)
