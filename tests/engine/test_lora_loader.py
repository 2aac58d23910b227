"""What of a registered adapter lies in RAM: the numbers that PEFT saved, in no more bytes."""

from dataclasses import replace

import pytest
import torch

from finlora.engine.lora_loader import LoRALoader
from finlora.engine.lora_weights import AdapterWeights
from finlora.errors import AdapterLoadError
from finlora.model import base_spec
from tests.adapters.peft_folders import key_of, read_tensors
from tests.engine.conftest import EngineMaker, World

FLOAT, HALF = torch.float32, torch.bfloat16
NAME = "model.layers.0.self_attn.q_proj"


def load(
    world: World, kind: str, *, computes: torch.dtype = FLOAT, **config: object
) -> AdapterWeights:
    adapter = world.adapters[kind]
    loader = LoRALoader(
        world.registry.read,
        base_spec(str(world.base)),
        members={},
        row_norms={},
        max_rank=16,
        dtype=computes,
    )
    return loader(replace(adapter, config=adapter.config.model_copy(update=config)))


@pytest.mark.parametrize(
    ("kind", "alpha", "computes", "kept"),
    [
        ("lora", 8, FLOAT, FLOAT),
        ("lora", 8, HALF, HALF),
        ("lora-bf16", 20, FLOAT, HALF),
        ("lora-bf16", 5 / 8, FLOAT, HALF),
        ("lora-bf16", 15, FLOAT, FLOAT),  # three times a number needs more bits
        ("lora-bf16", 15, HALF, HALF),
    ],
)
def test_bfloat16_stays_where_it_holds_the_numbers(
    llama: World, kind: str, alpha: float, computes: torch.dtype, kept: torch.dtype
) -> None:
    weights = load(llama, kind, computes=computes, lora_alpha=alpha)
    stored = read_tensors(llama.folders[kind])
    own = weights.layers[NAME]
    a, b = (stored[key_of(NAME, role)].float() for role in ("lora_A", "lora_B"))
    scaled = (b * alpha / len(a)).T
    assert own.a.dtype is own.b.dtype is kept
    assert torch.equal(own.a, a.to(kept))
    assert torch.equal(own.b, scaled.to(kept))
    assert own.b.is_contiguous()
    if computes is FLOAT:
        assert torch.equal(own.b.float(), scaled)


def test_one_layer_that_needs_more_bits_has_all_layers_widened(llama: World) -> None:
    weights = load(llama, "lora-bf16", alpha_pattern={"q_proj": 15})
    assert {layer.b.dtype for layer in weights.layers.values()} == {FLOAT}
    shapes = base_spec(str(llama.base)).linear_layers.values()
    assert weights.num_bytes == sum(4 * 5 * (s.in_features + s.out_features) for s in shapes)


def test_dora_of_a_row_without_length_is_refused(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_engine(llama).engine.adapters._loader._load
    assert isinstance(loader, LoRALoader)
    norms = torch.full_like(loader._row_norms[NAME], -1e6)  # what rounding leaves of nothing
    monkeypatch.setitem(loader._row_norms, NAME, norms)
    with pytest.raises(AdapterLoadError, match="a row of W \\+ B A is zero"):
        loader(llama.adapters["dora"])
    assert loader(llama.adapters["lora"]).num_bytes
