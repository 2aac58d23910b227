"""What a registry folder holds, read without a lock; writers never leave it half changed.

<variant>/<name>/current               digests, the served one first, then earlier ones
<variant>/<name>/versions/<digest>/    a plain PEFT folder and manifest.json, never changed
aliases.json   .generation   log.jsonl   format.json
"""

import json
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finlora.adapters.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    NAME_PATTERN,
    VARIANT_PATTERN,
    WEIGHTS_FILE,
    Adapter,
    Manifest,
    content_digest,
)
from finlora.adapters.files import read_bounded
from finlora.adapters.peft_config import MAX_CONFIG_BYTES, parse_config
from finlora.errors import AdapterError, AdapterLoadError, AdapterNotFoundError

FORMAT_VERSION = 1
FORMAT_FILE = "format.json"
GENERATION_FILE = ".generation"
ALIASES_FILE = "aliases.json"
POINTER_FILE = "current"
VERSIONS_FOLDER = "versions"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_POINTER_BYTES = 1024 * 1024
MAX_WEIGHTS_BYTES = 64 * 1024**3
MIN_DIGEST_PREFIX = 8

Stamp = tuple[int, int, int]


@dataclass(slots=True)
class _Index:
    """Folders by adapter name, with what they looked like when they were listed."""

    stamp: object = None
    variants: list[Path] = field(default_factory=list)
    folders: dict[str, list[Path]] = field(default_factory=dict)


class Catalogue:
    """Finds adapters by name; notices changes made by other processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index = _Index()
        self._versions: dict[Path, tuple[Stamp, Adapter]] = {}
        self._lock = threading.Lock()

    def generation(self) -> int:
        """A number that every change of the registry increases."""
        try:
            return int((self.root / GENERATION_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def names(self) -> list[str]:
        """Registered names, sorted, whether their files are sound or not."""
        return [name for name in sorted(self._folders()) if self.pointer(name) is not None]

    def folders(self, name: str) -> list[Path]:
        """The folders of a name, one for each variant that holds versions of it."""
        return self._folders().get(name, [])

    def all_folders(self) -> list[Path]:
        """The folders of all names, removed ones too."""
        return sorted(folder for folders in self._folders().values() for folder in folders)

    def unregistered(self) -> list[Path]:
        """Plain PEFT folders put into the registry by hand; they are not served."""
        return [
            folder
            for folder in self.all_folders()
            if (folder / CONFIG_FILE).is_file() and not (folder / VERSIONS_FOLDER).is_dir()
        ]

    def pointer(self, name: str) -> tuple[Path, list[str]] | None:
        """The folder that a name is served from and its digests, the served one first."""
        for folder in self.folders(name):
            if digests := read_pointer(folder):
                return folder, digests
        return None

    def aliases(self) -> dict[str, str]:
        """Alias -> adapter name."""
        path = self.root / ALIASES_FILE
        if not path.exists():
            return {}
        try:
            aliases = json.loads(read_bounded(path, MAX_MANIFEST_BYTES))
            return {str(alias): str(name) for alias, name in aliases.items()}
        except (ValueError, AttributeError) as error:
            raise AdapterError(f"{path} is not a JSON object of names") from error

    def resolve(self, reference: str) -> Adapter:
        """The version that "name", an alias or "name@digest-prefix" means now.

        Raises AdapterNotFoundError, or AdapterLoadError when its files are broken.
        """
        name, at, prefix = reference.partition("@")
        pointer = self.pointer(name)
        if pointer is None:
            name = self.aliases().get(name, name)
            pointer = self.pointer(name)
        if pointer is None:
            raise AdapterNotFoundError(f"no adapter {name!r} is registered")
        folder, digests = pointer
        digest = self.find_digest(name, folder, prefix) if at else digests[0]
        return self.version(folder, digest)

    def find_digest(self, name: str, folder: Path, prefix: str) -> str:
        """The one version of a folder whose digest starts so."""
        if len(prefix) < MIN_DIGEST_PREFIX:
            raise AdapterNotFoundError(f"a digest needs at least {MIN_DIGEST_PREFIX} digits")
        found = [digest for digest in list_digests(folder) if digest.startswith(prefix)]
        if len(found) != 1:
            problem = "no version" if not found else "more than one version"
            raise AdapterNotFoundError(f"adapter {name!r} has {problem} {prefix!r}")
        return found[0]

    def version(self, folder: Path, digest: str) -> Adapter:
        """The record of one version. Raises AdapterLoadError when its files are broken."""
        version = folder / VERSIONS_FOLDER / digest
        try:
            stamp = _stamp(version / MANIFEST_FILE)
        except OSError as error:
            raise AdapterLoadError(f"version {digest[:12]} of {folder.name} is missing") from error
        with self._lock:
            known = self._versions.get(version)
            if known is None or known[0] != stamp:
                known = self._versions[version] = (stamp, _load_version(folder, version))
            return known[1]

    def read(self, adapter: Adapter) -> bytes:
        """The weights, whole, checked against the digest. Raises AdapterLoadError."""
        config = read_bounded(adapter.folder / CONFIG_FILE, MAX_CONFIG_BYTES)
        weights = read_bounded(adapter.folder / WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
        if content_digest(config, weights, adapter.manifest) != adapter.digest:
            raise AdapterLoadError(f"the files of {adapter.reference} do not match their digest")
        return weights

    def _folders(self) -> dict[str, list[Path]]:
        with self._lock:
            stamp = self._listing_stamp()
            if stamp != self._index.stamp:
                self._index = _list_folders(self.root)
                self._index.stamp = self._listing_stamp()
            return self._index.folders

    def _listing_stamp(self) -> object:
        """Changes when an adapter folder appears or goes, also when that is done by hand."""
        try:
            times = [os.stat(path).st_mtime_ns for path in (self.root, *self._index.variants)]
        except FileNotFoundError:
            return None
        return self.generation(), times


def read_pointer(folder: Path) -> list[str]:
    """Digests in the pointer file of an adapter; empty when it has none."""
    try:
        content = read_bounded(folder / POINTER_FILE, MAX_POINTER_BYTES)
    except AdapterLoadError:
        return []
    return [line for line in content.decode("ascii", "replace").split() if _is_digest(line)]


def list_digests(folder: Path) -> list[str]:
    """Digests of every stored version of an adapter."""
    try:
        return sorted(name for name in os.listdir(folder / VERSIONS_FOLDER) if _is_digest(name))
    except OSError:
        return []


def parse_manifest(content: bytes) -> Manifest:
    """A manifest from its file. Raises AdapterLoadError naming the wrong field."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterLoadError(f"{MANIFEST_FILE}: {where}: {first['msg']}") from error


def _load_version(folder: Path, version: Path) -> Adapter:
    config = parse_config(read_bounded(version / CONFIG_FILE, MAX_CONFIG_BYTES))
    manifest = parse_manifest(read_bounded(version / MANIFEST_FILE, MAX_MANIFEST_BYTES))
    return Adapter(folder.name, folder.parent.name, version.name, version, config, manifest)


def _list_folders(root: Path) -> _Index:
    variants = [path for path in _subfolders(root) if re.fullmatch(VARIANT_PATTERN, path.name)]
    index = _Index(variants=variants)
    for variant in variants:
        for folder in _subfolders(variant):
            if re.fullmatch(NAME_PATTERN, folder.name):
                index.folders.setdefault(folder.name, []).append(folder)
    return index


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stamp(path: Path) -> Stamp:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
