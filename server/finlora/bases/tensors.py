"""The 16-bit source tensors of a base, read from its safetensors files without loading them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finlora.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class TensorEntry:
    """Where one tensor's bytes stand."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int  # offset in the file
    num_bytes: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load. Raises BaseModelError."""
    names = [WEIGHTS_FILE]
    # It takes the single file first: an index beside it describes weights that are not served.
    if not (folder / WEIGHTS_FILE).is_file() and (folder / INDEX_FILE).is_file():
        names = _indexed(folder / INDEX_FILE)
    files = [folder / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BaseModelError(
            f"{folder} lacks {', '.join(missing)}: weights must be in safetensors format"
        )
    return files


def _indexed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{index} is broken: {error}") from error


def tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the model by its name. Raises BaseModelError."""
    return {entry.name: entry for file in weight_files(folder) for entry in _entries(file)}


def read_tensor(entry: TensorEntry) -> "Tensor":
    """A copy in memory of its own. Raises BaseModelError: a type that weights do not have."""
    import torch

    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    if entry.dtype not in types:
        raise BaseModelError(f"{entry.name} is stored as {entry.dtype}")
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        content = bytearray(file.read(entry.num_bytes))
    return torch.frombuffer(content, dtype=types[entry.dtype]).view(entry.shape)


def read_weight(entries: Mapping[str, TensorEntry], layer: str) -> "Tensor":
    """[out_features, in_features] of a linear layer, in float32. Raises BaseModelError."""
    entry = entries.get(f"{layer}.weight")
    if entry is None:
        raise BaseModelError(f"the base has no tensor {layer}.weight")
    return read_tensor(entry).float()


def fingerprint(folder: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, however they are sharded."""
    entries = sorted(entry for file in weight_files(folder) for entry in _entries(file))
    digest = hashlib.sha256(b"finlora base 1\n")
    for entry in entries:
        digest.update(json.dumps([entry.name, entry.dtype, entry.shape]).encode())
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            remaining = entry.num_bytes
            while chunk := file.read(min(CHUNK_BYTES, remaining)):
                digest.update(chunk)
                remaining -= len(chunk)
    return digest.hexdigest()


def _entries(file: Path) -> list[TensorEntry]:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        entries = [_entry(file, 8 + length, name, fields) for name, fields in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{file} is not a readable safetensors file: {error}") from error
    if max((e.start + e.num_bytes for e in entries), default=0) != file.stat().st_size:
        raise BaseModelError(f"{file} is cut short or has bytes that belong to no tensor")
    return entries


def _entry(file: Path, offset: int, name: str, fields: dict[str, object]) -> TensorEntry:
    match fields:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            return TensorEntry(name, dtype, tuple(shape), file, offset + start, end - start)
    raise ValueError(f"tensor {name!r} is described badly")
