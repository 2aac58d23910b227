from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from finlora.bases.architecture import empty_model, read_config
from loadtest.random_base import LARGE_SHAPE, LlamaShape, write_base
from tests.tiny_models import build

TINY = LlamaShape(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


def test_the_base_is_whole_for_transformers(tmp_path: Path) -> None:
    tokenizer_of = build("llama", tmp_path / "other")
    folder = write_base(tmp_path / "random", TINY, tokenizer_of=str(tokenizer_of))
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        logits = model(torch.arange(8)[None]).logits
    assert logits.shape == (1, 8, 96)
    assert logits.isfinite().all()
    layers = [layer.self_attn.q_proj.weight for layer in model.model.layers]
    assert not layers[0].equal(layers[1])
    stamp = (folder / "config.json").stat().st_mtime_ns
    write_base(folder, TINY, tokenizer_of=str(tokenizer_of))
    assert (folder / "config.json").stat().st_mtime_ns == stamp


def test_the_large_shape_has_1_1_billion_parameters(tmp_path: Path) -> None:
    tokenizer_of = build("llama", tmp_path / "other")
    config = read_config(write_base(tmp_path / "tiny", TINY, tokenizer_of=str(tokenizer_of)))
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        setattr(config, name, getattr(LARGE_SHAPE, name))
    config.num_attention_heads = LARGE_SHAPE.num_attention_heads
    config.num_key_value_heads = LARGE_SHAPE.num_key_value_heads
    config.head_dim = LARGE_SHAPE.head_dim
    assert 1.09e9 < sum(p.numel() for p in empty_model(config).parameters()) < 1.11e9
