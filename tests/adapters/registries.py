"""What tests put into a registry, and how they see whether one has changed."""

import hashlib
from pathlib import Path

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry

CONFIG = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'
VARIANT = "4bits_r4"


def register(
    registry: AdapterRegistry, name: str = "sentiment", weights: bytes = b"one", **facts: object
) -> Adapter:
    return registry.register(name, VARIANT, CONFIG, weights, Manifest.model_validate(facts))


def tree_hash(folder: Path) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
