"""Reads a PEFT folder made here or elsewhere into bytes. Nothing in it is believed yet."""

from dataclasses import dataclass
from pathlib import Path

from finlora.adapters.adapter import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from finlora.adapters.files import read_bounded
from finlora.adapters.peft_config import MAX_CONFIG_BYTES, load_object
from finlora.adapters.versions import MAX_MANIFEST_BYTES, parse_manifest
from finlora.errors import AdapterLoadError

EXTRA_FILES = ("README.md", "metrics.json")
MAX_EXTRA_BYTES = 1024 * 1024
PICKLE_FILE = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """The content of an adapter folder."""

    config: bytes
    weights: bytes
    manifest: Manifest | None  # None: made by another tool
    extra_files: dict[str, bytes]

    @property
    def stated_base(self) -> str | None:
        """The base that adapter_config.json names: a hub id, or the last part of a path."""
        stated = load_object(self.config).get("base_model_name_or_path")
        if not isinstance(stated, str) or not stated.strip("/ "):
            return None
        parts = stated.strip().rstrip("/").split("/")
        is_hub_id = len(parts) == 2 and parts[0] not in ("", ".", "..", "~")
        return stated if is_hub_id else parts[-1]


def read_peft_folder(folder: Path, *, max_weights_bytes: int) -> PeftFolder:
    """Read an adapter folder. Raises AdapterLoadError saying what is missing or too large."""
    if not folder.is_dir():
        raise AdapterLoadError(f"{folder} is not a folder")
    config = read_bounded(folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    if not (folder / WEIGHTS_FILE).exists() and (folder / PICKLE_FILE).exists():
        raise AdapterLoadError(
            f"{PICKLE_FILE} is a pickle, which can run code when it is read; "
            "save the adapter with save_pretrained(..., safe_serialization=True)"
        )
    weights = read_bounded(folder / WEIGHTS_FILE, max_weights_bytes)
    manifest = None
    if (folder / MANIFEST_FILE).exists():
        manifest = parse_manifest(read_bounded(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES))
    extra = {
        name: read_bounded(folder / name, MAX_EXTRA_BYTES)
        for name in EXTRA_FILES
        if (folder / name).is_file()
    }
    return PeftFolder(config, weights, manifest, extra)
