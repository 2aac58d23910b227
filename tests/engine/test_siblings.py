"""Layers that share an input give together what each gives alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from finlora.bases.spec import LinearShape
from finlora.config import Quantization
from finlora.engine.packed_linear import PackedLinear, replace_packed_layers
from finlora.engine.paired_linear import PairedLinear
from finlora.engine.panel_linear import PanelLinear
from finlora.engine.siblings import LayerGroup, Sibling, Siblings, group_layers, install
from finlora.engine.unpacked_layers import replace_unpacked_layers
from finlora.engine.unpacked_linear import UnpackedLinear
from finlora.model import load_base, pack
from finlora.native import library
from tests.engine.conftest import World


def test_only_siblings_of_one_parent_and_one_width_are_grouped() -> None:
    layers = {
        "a.q_proj": LinearShape(8, 6),
        "a.k_proj": LinearShape(8, 2),
        "a.v_proj": LinearShape(8, 2),
        "a.o_proj": LinearShape(6, 8),
        "b.q_proj": LinearShape(8, 6),
        "b.k_proj": LinearShape(4, 2),
        "b.v_proj": LinearShape(8, 2),
        "c.up_proj": LinearShape(8, 16),
    }
    groups = {group.names: group for group in group_layers(layers)}
    assert set(groups) == {
        ("a.q_proj", "a.k_proj", "a.v_proj"),
        ("a.o_proj",),
        ("b.q_proj",),
        ("b.k_proj",),
        ("b.v_proj",),
        ("c.up_proj",),
    }
    joined = groups["a.q_proj", "a.k_proj", "a.v_proj"]
    assert joined.columns == [slice(0, 6), slice(6, 8), slice(8, 10)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # without and with biases
@pytest.mark.parametrize(
    ("quantization", "dtype", "joined"),
    [
        (Quantization.NF4, torch.bfloat16, PackedLinear),
        (Quantization.NF4, torch.bfloat16, PairedLinear),
        (Quantization.NF4, torch.float32, PanelLinear),
        (Quantization.NF4, torch.float32, UnpackedLinear),
        (Quantization.INT8, torch.float32, Siblings),
        (Quantization.NONE, torch.float32, nn.Linear),
    ],
)
def test_every_layer_computes_what_it_did_alone(
    worlds: Callable[[str], World],
    architecture: str,
    quantization: Quantization,
    dtype: torch.dtype,
    joined: type[nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if joined is UnpackedLinear:
        monkeypatch.setattr(library, "obstacle", lambda: "none is there")
    if joined is PanelLinear and library.obstacle():
        pytest.skip(f"compiled kernels: {library.obstacle()}")
    if joined is PairedLinear and library.avx512_obstacle():
        pytest.skip(f"compiled kernels: {library.avx512_obstacle()}")
    base = load_base(str(worlds(architecture).base), quantization, device="cpu", dtype=dtype)
    if joined is PackedLinear and not pack(base.model):
        pytest.skip("this CPU has no packed kernel")
    replace_packed_layers(base.model)
    replace_unpacked_layers(base.model)
    names = list(base.spec.linear_layers)
    alone = {name: base.model.get_submodule(name) for name in names}
    members = install(base.model, group_layers(base.spec.linear_layers), lambda layer, _: layer)
    with torch.inference_mode():
        for name in names:
            layer = base.model.get_submodule(name)
            x = torch.randn(3, alone[name].in_features, dtype=dtype)  # type: ignore[call-overload]
            expected: Tensor = alone[name](x)
            _assert_close(layer(x), expected)
            bias = getattr(alone[name], "bias", None)
            _assert_close(members[name].product(x), expected if bias is None else expected - bias)
    query = base.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(query, Sibling)
    assert isinstance(query.joined, joined)


def _assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if expected.dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


class Counted(nn.Module):
    """Doubles its input and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4) * 2)
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x @ self.weight


def test_one_product_serves_all_siblings_of_an_input() -> None:
    counted = Counted()
    model = nn.ModuleDict({"gate_proj": nn.Linear(4, 1), "up_proj": nn.Linear(4, 3)})
    group = LayerGroup(("gate_proj", "up_proj"), 4, (1, 3))
    install(model, [group], lambda *_: counted)
    gate, up = model["gate_proj"], model["up_proj"]
    with torch.inference_mode():
        one, other = torch.randn(2, 4), torch.randn(2, 4)
        for x in (one, other, one):
            assert torch.equal(torch.cat((gate(x), up(x)), -1), 2 * x)
        assert counted.num_calls == 3
        assert torch.equal(torch.cat((gate(one), up(other)), -1), 2 * torch.cat(
            (one[:, :1], other[:, 1:]), -1))  # fmt: skip
