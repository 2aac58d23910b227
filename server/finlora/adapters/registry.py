"""The adapter registry on disk: immutable versions under a name, and the pointer to the served one.

Every change is prepared aside and made visible by one rename, so a crash leaves the registry as it
was or as it should be. Weights are opaque bytes here; validation.py judges them.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
from finlora.adapters.catalogue import (
    ALIASES_FILE,
    FORMAT_FILE,
    FORMAT_VERSION,
    GENERATION_FILE,
    Catalogue,
    find_digest,
)
from finlora.adapters.files import replace_file, sync_folder, writer
from finlora.adapters.log import ChangeLog
from finlora.adapters.peft_config import parse_config
from finlora.adapters.versions import (
    POINTER_FILE,
    dump_manifest,
    list_digests,
    prune_versions,
    read_pointer,
    read_weights,
    store_version,
    write_pointer,
)
from finlora.config import DEFAULT_BASE
from finlora.errors import AdapterConflictError, AdapterError, AdapterNotFoundError


class AdapterRegistry:
    """Reads need no lock and see the changes of other processes; writers exclude each other."""

    def __init__(self, folder: Path, *, who: str | None = None) -> None:
        self.folder = folder
        self.log = ChangeLog(folder, who)
        self._catalogue = Catalogue(folder)
        _check_format(folder)

    def generation(self) -> int:
        """A number that every change increases."""
        return self._catalogue.generation()

    def resolve(self, reference: str) -> Adapter:
        """The version that "name", an alias or "name@digest-prefix" means now.

        Raises AdapterNotFoundError, or AdapterLoadError when its files are broken.
        """
        return self._catalogue.resolve(reference)

    def read(self, adapter: Adapter) -> bytes:
        """The weights, whole and checked against the digest. Raises AdapterLoadError."""
        return read_weights(adapter)

    def is_registered(self, name: str) -> bool:
        """Whether the name is served now."""
        return self._catalogue.pointer(name) is not None

    def names(self) -> list[str]:
        """Registered names, also of adapters whose files are broken."""
        return list(self._catalogue.pointers())

    def current(self) -> list[Adapter]:
        """The served version of every name; names with broken files are in `broken`."""
        return [adapter for _, adapter in self._served() if isinstance(adapter, Adapter)]

    def broken(self) -> dict[str, AdapterError]:
        """Registered names that cannot be served, and why."""
        return {name: error for name, error in self._served() if isinstance(error, AdapterError)}

    def digests(self, name: str) -> list[str]:
        """Digests of the stored versions: the served one first, then earlier ones, then the rest.

        Raises AdapterNotFoundError.
        """
        folder, pointed = self._pointer(name)
        return list(dict.fromkeys([*pointed, *list_digests(folder)]))

    def versions(self, name: str) -> list[Adapter]:
        """The stored versions in the order of `digests`."""
        return [self.resolve(f"{name}@{digest}") for digest in self.digests(name)]

    def aliases(self) -> dict[str, str]:
        """Alias -> adapter name."""
        return self._catalogue.aliases()

    def unregistered(self) -> list[Path]:
        """Plain PEFT folders somebody copied into the registry; they are not served."""
        return self._catalogue.unregistered()

    def register(
        self,
        name: str,
        variant: str,
        config_bytes: bytes,
        weights_bytes: bytes,
        manifest: Manifest,
        extra_files: Mapping[str, bytes] | None = None,
        *,
        promote: bool = True,
    ) -> Adapter:
        """Store a version and let the name point to it; the same content is stored once.

        Without `promote` the name goes on meaning what it meant. The caller has judged the weights.
        Raises AdapterError when the name cannot be used, AdapterLoadError when the configuration is
        refused.
        """
        self.check_name(name, variant, manifest.base_name)
        parse_config(config_bytes)
        files = {
            **_checked_extra_files(extra_files or {}),
            CONFIG_FILE: config_bytes,
            WEIGHTS_FILE: weights_bytes,
            MANIFEST_FILE: dump_manifest(manifest),
        }
        digest = content_digest(config_bytes, weights_bytes, manifest)
        with self._writing() as staging:
            self._check_free(name, variant)
            folder = self.folder / variant / name
            store_version(folder, digest, files, staging)
            if promote:
                _point(folder, digest, staging)
            detail = None if promote else "not promoted"
            self._record(staging, "register", name, variant=variant, digest=digest, detail=detail)
        return self._catalogue.version(folder, digest)

    def check_name(self, name: str, variant: str, base_name: str | None) -> None:
        """Raises AdapterError when no adapter of a base can be registered under this name."""
        _check_pattern("name", name, NAME_PATTERN)
        _check_pattern("variant", variant, VARIANT_PATTERN)
        self._check_free(name, variant)
        if name in self._base_names() | {base_name}:
            raise AdapterConflictError(f"{name!r} is the name of a base model")

    def promote(self, name: str, digest_prefix: str) -> Adapter:
        """Let a name, also one that was removed, point to a version that is still stored."""
        with self._writing() as staging:
            folder = self._only_folder(name)
            self._check_free(name, folder.parent.name)
            digest = find_digest(folder, digest_prefix)
            adapter = self._catalogue.version(folder, digest)
            read_weights(adapter)
            _point(folder, digest, staging)
            self._record(staging, "promote", name, variant=adapter.variant, digest=digest)
        return adapter

    def rollback(self, name: str) -> Adapter:
        """Let a name point to the version it pointed to before."""
        with self._writing() as staging:
            folder, digests = self._pointer(name)
            if len(digests) < 2:
                raise AdapterConflictError(f"adapter {name!r} has no earlier version")
            adapter = self._catalogue.version(folder, digests[1])
            read_weights(adapter)
            write_pointer(folder, digests[1:], staging)
            self._record(staging, "rollback", name, variant=adapter.variant, digest=adapter.digest)
        return adapter

    def remove(self, name: str) -> None:
        """Take a name out of service; its versions stay on disk until `prune`."""
        with self._writing() as staging:
            folder, digests = self._pointer(name)
            os.replace(folder / POINTER_FILE, staging / POINTER_FILE)
            sync_folder(folder)
            variant = folder.parent.name
            self._record(staging, "remove", name, variant=variant, digest=digests[0])

    def alias(self, alias: str, name: str | None) -> None:
        """Let another name mean an adapter; None takes the alias away."""
        with self._writing() as staging:
            aliases = self.aliases()
            if name is None:
                if aliases.pop(alias, None) is None:
                    raise AdapterNotFoundError(f"there is no alias {alias!r}")
            else:
                _check_pattern("alias", alias, NAME_PATTERN)
                self._check_free(alias, None)
                if alias in self._base_names():
                    raise AdapterConflictError(f"{alias!r} is the name of a base model")
                self._pointer(name)
                aliases[alias] = name
            content = json.dumps(aliases, indent=1, sort_keys=True) + "\n"
            replace_file(self.folder / ALIASES_FILE, content.encode(), staging)
            self._record(staging, "alias", alias, detail=name or "removed")

    def prune(self, keep: int = 1) -> list[str]:
        """Delete versions but the served one and `keep` earlier ones of each name.

        Versions of removed names go altogether. Returns "name@digest" of what was deleted.
        """
        with self._writing() as staging:
            pruned = []
            for folder in self._catalogue.all_folders():
                pruned += [f"{folder.name}@{d}" for d in prune_versions(folder, keep, staging)]
            for reference in pruned:
                name, _, digest = reference.partition("@")
                self.log.append("prune", name, digest=digest)
            self._bump(staging)
        return pruned

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        with writer(self.folder) as staging:
            _check_format(self.folder)
            path = self.folder / FORMAT_FILE
            if not path.exists():
                content = json.dumps({"format_version": FORMAT_VERSION}) + "\n"
                replace_file(path, content.encode(), staging)
            yield staging

    def _served(self) -> Iterator[tuple[str, Adapter | AdapterError]]:
        for name, (folder, digests) in self._catalogue.pointers().items():
            try:
                yield name, self._catalogue.version(folder, digests[0])
            except AdapterError as error:
                yield name, error

    def _pointer(self, name: str) -> tuple[Path, list[str]]:
        pointer = self._catalogue.pointer(name)
        if pointer is None:
            raise AdapterNotFoundError(f"no adapter {name!r} is registered")
        return pointer

    def _only_folder(self, name: str) -> Path:
        """The folder of a name; of a removed one only when no two variants hold versions of it."""
        pointer = self._catalogue.pointer(name)
        if pointer is not None:
            return pointer[0]
        folders = self._catalogue.folders(name)
        if len(folders) != 1:
            held = "no variant holds" if not folders else "several variants hold"
            raise AdapterNotFoundError(f"{held} versions of {name!r}")
        return folders[0]

    def _check_free(self, name: str, variant: str | None) -> None:
        """A name belongs to one variant, and is not an alias at the same time."""
        pointer = self._catalogue.pointer(name)
        if pointer is not None and pointer[0].parent.name != variant:
            raise AdapterConflictError(
                f"the name {name!r} is taken by {pointer[0].parent.name}/{name}; "
                "names are unique across variants"
            )
        if variant is not None and name in self.aliases():
            raise AdapterConflictError(f"{name!r} is an alias of {self.aliases()[name]!r}")

    def _base_names(self) -> set[str | None]:
        return {adapter.manifest.base_name for adapter in self.current()} | {DEFAULT_BASE}

    def _record(
        self,
        staging: Path,
        action: str,
        name: str,
        *,
        variant: str | None = None,
        digest: str | None = None,
        detail: str | None = None,
    ) -> None:
        self.log.append(action, name, variant=variant, digest=digest, detail=detail)
        self._bump(staging)

    def _bump(self, staging: Path) -> None:
        content = f"{self.generation() + 1}\n"
        replace_file(self.folder / GENERATION_FILE, content.encode(), staging)


def _point(folder: Path, digest: str, staging: Path) -> None:
    earlier = [known for known in read_pointer(folder) if known != digest]
    write_pointer(folder, [digest, *earlier], staging)


def _check_format(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise AdapterError(f"the registry {folder} is not a folder")
    path = folder / FORMAT_FILE
    if not path.exists():
        return
    try:
        version = json.loads(path.read_bytes())["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path} is not a registry format file") from error
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{folder} is a registry of format {version}; this version reads {FORMAT_VERSION}"
        )


def _check_pattern(what: str, value: str, pattern: str) -> None:
    if re.fullmatch(pattern, value) is None:
        raise AdapterError(f"{what} {value[:128]!r} does not match {pattern}")


def _checked_extra_files(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    for name in files:
        _check_pattern("file name", name, r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
    return files
