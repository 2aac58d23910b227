"""The folder of one adapter name: its immutable versions and the pointer to the served one."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finlora.adapters.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Adapter,
    Manifest,
    content_digest,
    first_problem,
)
from finlora.adapters.files import (
    make_folder,
    move_folder,
    read_bounded,
    replace_file,
    write_file,
)
from finlora.adapters.peft_config import MAX_CONFIG_BYTES, parse_config
from finlora.errors import AdapterError, AdapterLoadError

POINTER_FILE = "current"
VERSIONS_FOLDER = "versions"
MAX_HISTORY = 500
MAX_POINTER_BYTES = 65 * MAX_HISTORY
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_WEIGHTS_BYTES = 64 * 1024**3


def read_pointer(folder: Path) -> list[str]:
    """The served digest, then those it replaced, latest first; empty when nothing is served."""
    try:
        with open(os.path.join(folder, POINTER_FILE), "rb") as file:
            content = file.read(MAX_POINTER_BYTES)
    except OSError:
        return []
    return [line for line in content.decode("ascii", "replace").split() if _is_digest(line)]


def write_pointer(folder: Path, digests: list[str], staging: Path) -> None:
    """Let the name mean the first of the digests."""
    make_folder(folder)
    content = "".join(f"{digest}\n" for digest in digests[:MAX_HISTORY])
    replace_file(folder / POINTER_FILE, content.encode(), staging)


def list_digests(folder: Path) -> list[str]:
    """Digests of every stored version."""
    try:
        return sorted(name for name in os.listdir(folder / VERSIONS_FOLDER) if _is_digest(name))
    except OSError:
        return []


def load_version(version: Path) -> Adapter:
    """The record of a version, without its weights. Raises AdapterLoadError."""
    config = parse_config(read_bounded(version / CONFIG_FILE, MAX_CONFIG_BYTES))
    manifest = parse_manifest(read_bounded(version / MANIFEST_FILE, MAX_MANIFEST_BYTES))
    folder = version.parent.parent
    return Adapter(folder.name, folder.parent.name, version.name, version, config, manifest)


def read_weights(adapter: Adapter) -> bytes:
    """The weights, whole and checked against the digest. Raises AdapterLoadError."""
    config = read_bounded(adapter.folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    weights = read_bounded(adapter.folder / WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
    if content_digest(config, weights, adapter.manifest) != adapter.digest:
        raise AdapterLoadError(f"the files of {adapter.reference} do not match their digest")
    return weights


def parse_manifest(content: bytes) -> Manifest:
    """A manifest from its file. Raises AdapterLoadError naming the wrong field."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise AdapterLoadError(f"{MANIFEST_FILE}: {first_problem(error)}") from error


def dump_manifest(manifest: Manifest) -> bytes:
    """A manifest as its file holds it. Raises AdapterError when it could not be read again."""
    try:
        content = (manifest.model_dump_json(indent=1) + "\n").encode()
    except ValueError as error:
        raise AdapterError(f"{MANIFEST_FILE} cannot be written: {error}") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise AdapterError(f"{MANIFEST_FILE} would be larger than {MAX_MANIFEST_BYTES} bytes")
    return content


def store_version(folder: Path, digest: str, files: Mapping[str, bytes], staging: Path) -> None:
    """Write a version that is not there yet, or whose files are damaged."""
    version = folder / VERSIONS_FOLDER / digest
    if version.exists():
        try:
            read_weights(load_version(version))
        except AdapterLoadError:
            os.rename(version, staging / "damaged")
        else:
            return
    prepared = staging / "version"
    prepared.mkdir()
    for name, content in files.items():
        write_file(prepared / name, content)
    move_folder(prepared, version)


def prune_versions(folder: Path, keep: int, staging: Path) -> list[str]:
    """Delete versions but the served one and `keep` before it; returns the deleted digests."""
    digests = read_pointer(folder)
    kept = digests[: 1 + keep]
    if kept != digests:
        write_pointer(folder, kept, staging)
    pruned = [digest for digest in list_digests(folder) if digest not in kept]
    for digest in pruned:
        # Out of sight by one rename; deleting a folder in place could be caught half done.
        os.rename(folder / VERSIONS_FOLDER / digest, staging / digest)
        shutil.rmtree(staging / digest)
    if not kept:
        _remove_if_empty(folder / VERSIONS_FOLDER)
        _remove_if_empty(folder)
    return pruned


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
