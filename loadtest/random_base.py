"""A base with random weights in a given Llama shape, written layer by layer: one in memory."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from finlora.bases.locate import locate

STD = 0.02


@dataclass(frozen=True)
class LlamaShape:
    """The sizes in a Llama model's config."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 4096

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


# 1.1 billion parameters: 22 layers of 44 million, embedding and lm_head.
LARGE_SHAPE = LlamaShape(32000, 2048, 5632, 22, 32, 4)


def write_base(folder: Path, shape: LlamaShape, *, tokenizer_of: str) -> Path:
    """The folder of the base, written where it is not there yet.

    The tokenizer is another base's: only its ids below `vocab_size` mean anything.
    """
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    source = locate(tokenizer_of)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    index = _write_weights(folder, shape)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
        **asdict(shape),
    }
    # Last: a folder with a config is a whole one.
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    return folder


def _write_weights(folder: Path, shape: LlamaShape) -> dict[str, object]:
    files: dict[str, str] = {}
    total = 0
    for number in range(shape.num_hidden_layers + 1):
        tensors = _layer(shape, number) if number < shape.num_hidden_layers else _ends(shape)
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    return {"metadata": {"total_size": total}, "weight_map": files}


def _layer(shape: LlamaShape, number: int) -> dict[str, torch.Tensor]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv_width = shape.num_key_value_heads * shape.head_dim
    prefix = f"model.layers.{number}."
    matrices = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator().manual_seed(number)
    tensors = {
        f"{prefix}{name}.weight": _random(size, generator) for name, size in matrices.items()
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    return tensors


def _ends(shape: LlamaShape) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(shape.num_hidden_layers)
    size = (shape.vocab_size, shape.hidden_size)
    return {
        "model.embed_tokens.weight": _random(size, generator),
        "lm_head.weight": _random(size, generator),
        "model.norm.weight": torch.ones(shape.hidden_size, dtype=torch.bfloat16),
    }


def _random(size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(size, generator=generator) * STD).bfloat16()
