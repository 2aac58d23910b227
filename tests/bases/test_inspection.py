"""Errors and costs are those of bitsandbytes' own layers."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from transformers import AutoModelForCausalLM

from finlora.bases.cli import main
from finlora.bases.inspection import layer_errors, mean_errors
from finlora.model import base_spec
from tests.tiny_models import build

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("inspected"), hidden_size=256)


def test_errors_are_those_of_the_layers_that_are_served(base: Path) -> None:
    layers = {e.name: e for e, _ in layer_errors(base, base_spec(str(base)).linear_layers)}
    model = AutoModelForCausalLM.from_pretrained(base)
    weight: torch.Tensor = model.get_submodule(LAYER).weight.detach()  # type: ignore[operator]
    for kind in ("nf4", "fp4"):
        layer = Linear4bit(
            weight.shape[1], weight.shape[0], bias=False,
            compute_dtype=torch.float32, quant_type=kind,
        )  # fmt: skip
        layer.weight = Params4bit(
            weight.clone(), requires_grad=False, quant_type=kind, blocksize=64
        )
        layer = layer.to("cpu")
        layer.support_avx512bf16_for_cpu = False
        with torch.no_grad():
            stored = layer(torch.eye(weight.shape[1])).T
        error = ((stored - weight).norm() / weight.norm()).item()
        assert layers[LAYER].relative[kind] == pytest.approx(error, rel=1e-3)
    found = layers[LAYER].relative
    assert found["int8"] < found["nf4"] < found["fp4"]
    assert found["nf4"] < mean_errors(list(layers.values()))["fp4"]


def test_scales_cost_what_the_qlora_paper_says(base: Path) -> None:
    """32 / 64 bits a weight, and 8 / 64 + 32 / (64 * 256) with double quantisation."""
    _, scales = next(iter(layer_errors(base, base_spec(str(base)).linear_layers)))
    assert scales.plain == pytest.approx(0.5)
    assert scales.double == pytest.approx(0.127, abs=0.001)
    assert scales.packed == pytest.approx(0.25)


def test_the_command(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(base), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["memory_bytes"]
    linear = 2 * sum(layer["in_features"] * layer["out_features"] for layer in found["layers"])
    assert memory["none"]["linear"] == linear
    assert memory["nf4"]["linear"] == linear / 4
    assert memory["int8"]["linear"] == linear / 2
    assert main(["inspect", str(base)]) == 0
    assert "all layers" in capsys.readouterr().out
