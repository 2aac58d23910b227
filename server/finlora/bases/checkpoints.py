"""Where the quantised weights of a base are kept, and which are there. No torch."""

import hashlib
from pathlib import Path

from finlora.bases.store import FILES_FILE
from finlora.config import Quantization, cache_folder

FORMAT_VERSION = 1
KEPT_QUANTISED = (Quantization.NF4, Quantization.FP4)  # the others are read from the 16-bit weights


def checkpoint_folder(source: Path, fingerprint: str, kind: str) -> Path:
    """Where the checkpoint of a kind ("nf4-bfloat16") stands, be it there or not."""
    return _folder() / f"{_prefix(source, fingerprint)}{kind}"


def checkpoint_bytes(source: Path, fingerprint: str) -> dict[str, int]:
    """The size of each kind that is there."""
    prefix = _prefix(source, fingerprint)
    return {
        folder.name.removeprefix(prefix): _num_bytes(folder)
        for folder in sorted(_folder().glob(f"{prefix}*"))
        if (folder / FILES_FILE).is_file()
    }


def _folder() -> Path:
    return cache_folder() / "quantized"


def _prefix(source: Path, fingerprint: str) -> str:
    """By weights and config: a checkpoint computes as the config says that it was saved with."""
    config = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
    return f"{FORMAT_VERSION}-{fingerprint[:16]}-{config[:8]}-"


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
