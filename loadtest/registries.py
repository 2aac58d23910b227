"""Registries of many random adapters, kept under `build/` because they take minutes to make.

a0, a1, a2, a3 are those that every server of a comparison gets; the others have random weights of
the same shapes.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from finlora.adapters.adding import Target, add_folder
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.spec import BaseSpec
from finlora.bench.adapters import register_random
from finlora.config import Quantization

# Registering looks at every adapter that is there; folders of a few, moved together, do not.
CHUNK = 50
MAX_RANK = 64


def add_folders(registry: Path, folders: Sequence[Path], spec: BaseSpec) -> None:
    """Register PEFT folders under their own names."""
    target = Target(spec=spec, quantization=Quantization.NF4, max_rank=MAX_RANK, trained_here=True)
    opened = AdapterRegistry(registry, who="loadtest")
    for folder in folders:
        add_folder(opened, folder, folder.name, None, target)


def large_registry(
    cache: Path, spec: BaseSpec, folders: Sequence[Path], count: int, *, rank: int = 8
) -> Path:
    """A registry of `count` adapters for the base, made where it is not there yet."""
    registry = cache / f"{spec.fingerprint[:12]}-{count}-r{rank}"
    if registry.is_dir():
        return registry
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".partial-") as folder:
        partial = Path(folder) / "registry"
        add_folders(partial, folders[:count], spec)
        for first in range(len(folders), count, CHUNK):
            chunk = Path(folder) / "chunk"
            made = AdapterRegistry(chunk, who="loadtest")
            size = min(CHUNK, count - first)
            for _ in register_random(made, spec, count=size, rank=rank, first=first):
                pass
            _move_names(chunk, partial)
            shutil.rmtree(chunk)
        os.rename(partial, registry)
    return registry


def _move_names(source: Path, target: Path) -> None:
    for pointer in source.glob("*/*/current"):
        name = pointer.parent
        variant = target / name.parent.name
        variant.mkdir(parents=True, exist_ok=True)
        os.rename(name, variant / name.name)
