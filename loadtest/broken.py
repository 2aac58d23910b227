"""Registered adapters whose files were damaged afterwards, each in another way."""

import json
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from finlora.adapters.adapter import WEIGHTS_FILE, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.spec import BaseSpec
from finlora.bench.adapters import random_weights

RANK = 8
VARIANT = "broken"


def add_broken(folder: Path, spec: BaseSpec, count: int) -> tuple[str, ...]:
    """Register `count` adapters and damage them; their names."""
    registry = AdapterRegistry(folder, who="loadtest")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    manifest = Manifest(
        base_name=spec.name, base_fingerprint=spec.fingerprint, tokenizer_hash=spec.tokenizer_hash
    )
    names: list[str] = []
    for damage in islice(cycle(DAMAGES), count):
        name = f"broken-{len(names)}"
        weights = random_weights(spec, RANK, seed=len(names))
        made = registry.register(name, VARIANT, json.dumps(config).encode(), weights, manifest)
        damage(made.folder / WEIGHTS_FILE)
        names.append(name)
    return tuple(names)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _delete(file: Path) -> None:
    file.unlink()


DAMAGES: tuple[Callable[[Path], None], ...] = (_cut, _flip_bit, _delete)
