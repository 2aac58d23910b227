"""The short way to the packed kernel gives the very bits of the long one."""

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from finlora.config import Quantization
from finlora.engine.packed_linear import PackedLinear, replace_packed_layers
from finlora.model import load_base, pack
from tests.engine.conftest import World

SHAPES = [(1, 1), (1, 7), (3, 40), (1, 300)]


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.FP4])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # without and with biases
def test_bit_equal_to_bitsandbytes(
    worlds: Callable[[str], World], architecture: str, quantization: Quantization
) -> None:
    model = load_base(str(worlds(architecture).base), quantization, dtype=torch.bfloat16).model
    if not pack(model):
        pytest.skip("this CPU has no packed kernel")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert replace_packed_layers(model) == len(layers)
    for name, layer in layers.items():
        short = model.get_submodule(name)
        assert isinstance(short, PackedLinear)
        for shape in SHAPES:
            x = torch.randn(*shape, layer.in_features, dtype=torch.bfloat16)
            with torch.inference_mode():
                assert torch.equal(short(x), layer(x)), name
                strided = torch.randn(*shape, 2 * layer.in_features, dtype=torch.bfloat16)
                strided = strided[..., : layer.in_features]
                assert torch.equal(short(strided), layer(strided.contiguous())), name


def test_unpacked_layers_are_left_alone(llama: World) -> None:
    assert replace_packed_layers(llama.load().model) == 0
