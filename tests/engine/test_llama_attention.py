"""Which modules are replaced; that the numbers are the same is shown by test_parity.py."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from finlora.engine.llama_attention import NativeLlamaAttention, replace_attention
from tests.tiny_models import build


@pytest.mark.parametrize(
    ("architecture", "overrides", "expected"),
    [
        ("llama", {}, 2),
        ("mistral", {}, 2),
        ("qwen2", {}, 2),
        ("qwen3", {}, 2),
        ("gemma2", {}, 0),
        ("llama", {"head_dim": 24}, 0),  # its halves are no whole vectors
    ],
)
def test_modules_like_llamas_are_replaced_and_keep_their_parts(
    architecture: str, overrides: dict[str, int], expected: int, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(build(architecture, tmp_path, **overrides))
    before = {name: m for name, m in model.named_modules() if name.endswith(("_proj", "_norm"))}
    assert replace_attention(model) == expected
    attention = model.get_submodule("model.layers.0.self_attn")
    assert isinstance(attention, NativeLlamaAttention) is bool(expected)
    for name, part in before.items():
        assert model.get_submodule(name) is part
