"""Every architecture the engine can serve is let in; the others are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from finlora.bases.architecture import check_servable, empty_model, linear_layers, read_config
from finlora.bases.spec import LinearShape
from finlora.errors import BaseModelError
from tests.tiny_models import ARCHITECTURES, SIZES, build, edit_config

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def check(architecture: str, **settings: Any) -> None:
    config = AutoConfig.for_model(architecture, **(SIZES | settings))
    check_servable(config, empty_model(config))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_served_architectures(architecture: str, tmp_path: Path) -> None:
    config = read_config(build(architecture, tmp_path / architecture))
    model = empty_model(config)
    check_servable(config, model)
    layers = linear_layers(model)
    assert len(layers) == 2 * 7
    assert layers["model.layers.1.mlp.down_proj"] == LinearShape(128, 64)
    assert "lm_head" not in layers


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("gpt_oss", {"num_local_experts": 4}, "sinks"),
        ("qwen3_moe", MOE, "mixture of experts"),
        ("mixtral", {"num_local_experts": 4}, "mixture of experts"),
        ("t5", {}, "not a causal language model"),
        ("bert", {}, "causal self-attention"),
        ("gpt2", {}, "no plain linear layers"),
        ("mamba", {}, "cannot be replaced"),
        ("bloom", {}, "cannot be replaced"),
        ("deepseek_v3", {}, "attention heads"),
        ("gemma4_text", {"layer_types": ["sliding_attention", "full_attention"]}, "heads"),
        ("gemma3", {}, "multimodal"),
        ("llama4_text", {}, "chunked_attention"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of type conv"),
        ("llama", {"rope_parameters": DYNAMIC}, "'dynamic'"),
        ("llama", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already"),
    ],
)
def test_refused_architectures(architecture: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BaseModelError, match=reason):
        check(architecture, **settings)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_attention_heads": 5, "head_dim": None}, "64.* is not a multiple of .*5"),
        ({"num_attention_heads": 0, "head_dim": None}, "zero"),
        ({"hidden_size": "large"}, "hidden_size"),
        ({"hidden_act": "none"}, "none"),
        ({"vocab_size": -3}, "negative dimension"),
    ],
)
def test_impossible_sizes(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    folder = build("llama", tmp_path / "llama")
    edit_config(folder, **fields)
    with pytest.raises(BaseModelError, match=rf"config\.json.*{reason}"):
        empty_model(read_config(folder))


def test_rotary_types_of_each_layer_type_are_seen() -> None:
    config = AutoConfig.for_model("llama", **SIZES)
    model = empty_model(config)
    config.rope_parameters = {"full_attention": DYNAMIC, "sliding_attention": {}}
    with pytest.raises(BaseModelError, match="dynamic"):
        check_servable(config, model)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"model_type": "no_such_model"}', '{"auto_map": {"AutoConfig": "evil.Config"}}'],
    ids=["no JSON", "no object", "unknown type", "code of its own"],
)
def test_broken_configs(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BaseModelError, match=r"config\.json cannot be read"):
        read_config(tmp_path)
