"""Finds adapters in a registry folder without a lock, and notices what other processes change.

<variant>/<name>/current               digests, the served one first, then earlier ones
<variant>/<name>/versions/<digest>/    a plain PEFT folder and manifest.json, never changed
aliases.json   .generation   log.jsonl   format.json
"""

import json
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from finlora.adapters.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    NAME_PATTERN,
    VARIANT_PATTERN,
    Adapter,
)
from finlora.adapters.files import read_bounded
from finlora.adapters.versions import (
    VERSIONS_FOLDER,
    list_digests,
    load_version,
    read_pointer,
)
from finlora.errors import AdapterError, AdapterLoadError, AdapterNotFoundError

FORMAT_VERSION = 1
FORMAT_FILE = "format.json"
GENERATION_FILE = ".generation"
ALIASES_FILE = "aliases.json"
MAX_ALIASES_BYTES = 4 * 1024 * 1024
MIN_DIGEST_PREFIX = 8

# The folder that a name is served from and its digests, the served one first.
Pointer = tuple[Path, list[str]]


@dataclass(slots=True)
class _Index:
    """Folders by adapter name, and what the disk looked like when they were listed."""

    stamp: object = None
    variants: list[Path] = field(default_factory=list)
    folders: dict[str, list[Path]] = field(default_factory=dict)


class Catalogue:
    """Adapters by name. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index = _Index()
        self._versions: dict[str, tuple[object, Adapter]] = {}
        self._lock = threading.Lock()

    def generation(self) -> int:
        """A number that every change of the registry increases; 0 where it cannot be read."""
        try:
            return int((self.root / GENERATION_FILE).read_bytes())
        except (OSError, ValueError):
            return 0

    def pointers(self) -> dict[str, Pointer]:
        """Registered names, sorted, whether their files are sound or not, and what they mean."""
        listed = self._folders()
        found = ((name, _pointer(listed[name])) for name in sorted(listed))
        return {name: pointer for name, pointer in found if pointer is not None}

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

    def pointer(self, name: str) -> Pointer | None:
        """What a name means; None: it is not registered."""
        return _pointer(self.folders(name))

    def aliases(self) -> dict[str, str]:
        """Alias -> adapter name."""
        path = self.root / ALIASES_FILE
        if not path.exists():
            return {}
        try:
            aliases = json.loads(read_bounded(path, MAX_ALIASES_BYTES))
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
        return self.version(folder, find_digest(folder, prefix) if at else digests[0])

    def version(self, folder: Path, digest: str) -> Adapter:
        """The record of one version. Raises AdapterLoadError when its files are broken."""
        # Not a Path's operators, which take longer than the rest of this for a known version.
        version = os.path.join(folder, VERSIONS_FOLDER, digest)
        try:
            status = os.stat(os.path.join(version, MANIFEST_FILE))
        except OSError as error:
            raise AdapterLoadError(f"version {digest[:12]} of {folder.name} is missing") from error
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._versions.get(version)
            if known is None or known[0] != stamp:
                known = self._versions[version] = (stamp, load_version(Path(version)))
            return known[1]

    def _folders(self) -> dict[str, list[Path]]:
        with self._lock:
            stamp = self._stamp(self._index.variants)
            if stamp is None or stamp != self._index.stamp:
                self._index = self._list()
            return self._index.folders

    def _stamp(self, variants: list[Path]) -> object:
        """Changes when a folder of an adapter appears or goes, also when that is done by hand."""
        try:
            times = [os.stat(path).st_mtime_ns for path in (self.root, *variants)]
        except OSError:
            return None
        return self.generation(), times

    def _list(self) -> _Index:
        variants = [
            path for path in _subfolders(self.root) if re.fullmatch(VARIANT_PATTERN, path.name)
        ]
        # Stamped before the names are listed: what appears in between is listed again next time.
        index = _Index(self._stamp(variants), variants)
        for variant in variants:
            for folder in _subfolders(variant):
                if re.fullmatch(NAME_PATTERN, folder.name):
                    index.folders.setdefault(folder.name, []).append(folder)
        self._versions = {v: known for v, known in self._versions.items() if os.path.isdir(v)}
        return index


def find_digest(folder: Path, prefix: str) -> str:
    """The one version of an adapter whose digest starts so. Raises AdapterNotFoundError."""
    if len(prefix) < MIN_DIGEST_PREFIX:
        raise AdapterNotFoundError(f"a digest needs at least {MIN_DIGEST_PREFIX} digits")
    found = [digest for digest in list_digests(folder) if digest.startswith(prefix)]
    if len(found) != 1:
        problem = "no version" if not found else "more than one version"
        raise AdapterNotFoundError(f"adapter {folder.name!r} has {problem} {prefix[:64]!r}")
    return found[0]


def _pointer(folders: Iterable[Path]) -> Pointer | None:
    for folder in folders:
        if digests := read_pointer(folder):
            return folder, digests
    return None


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(path) for path in sorted(e.path for e in entries if e.is_dir())]
    except OSError:
        return []
