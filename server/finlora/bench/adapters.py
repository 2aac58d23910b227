"""Adapters with random weights on every linear layer of a base, straight into a registry."""

import json
from collections.abc import Iterator

import torch
from safetensors.torch import save

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.validation import KEY_PREFIX
from finlora.bases.spec import BaseSpec

# Large enough that every adapter changes the output, small enough that activations stay finite.
A_STD = 0.02
B_STD = 0.002


def random_weights(spec: BaseSpec, rank: int, seed: int) -> bytes:
    """A safetensors file in bfloat16; the same call gives the same bytes."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, std: float) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * std).bfloat16()

    tensors = {}
    for name, shape in spec.linear_layers.items():
        key = f"{KEY_PREFIX}{name}"
        tensors[f"{key}.lora_A.weight"] = matrix(rank, shape.in_features, A_STD)
        tensors[f"{key}.lora_B.weight"] = matrix(shape.out_features, rank, B_STD)
    return save(tensors)


def register_random(
    registry: AdapterRegistry, spec: BaseSpec, *, count: int, rank: int, first: int = 0
) -> Iterator[Adapter]:
    """Register a`first`, ... a`first + count - 1`, one with every step of the iterator."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    manifest = Manifest(
        base_name=spec.name, base_fingerprint=spec.fingerprint, tokenizer_hash=spec.tokenizer_hash
    )
    for index in range(first, first + count):
        weights = random_weights(spec, rank, seed=index)
        yield registry.register(
            f"a{index}", f"random_r{rank}", json.dumps(config).encode(), weights, manifest
        )
