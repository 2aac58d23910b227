"""PEFT merges the same adapter into the same weights."""

from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from finlora.adapters.registry import AdapterRegistry
from finlora.model import base_spec
from finlora.quality.merging import merge
from tests.engine.harness import register_folder
from tests.tiny_models import build


def test_merging_is_pefts(tmp_path: Path) -> None:
    base = build("llama", tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = peft.get_peft_model(plain, settings)
    model.save_pretrained(str(tmp_path / "adapter"))
    registry = AdapterRegistry(tmp_path / "registry")
    adapter = register_folder(registry, "news", tmp_path / "adapter")

    folder = merge(str(base), adapter, registry, tmp_path / "merged")

    expected = dict(model.merge_and_unload().named_parameters())
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-5)
    assert base_spec(str(folder)).fingerprint != base_spec(str(base)).fingerprint
