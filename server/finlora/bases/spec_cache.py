"""Remembers the spec of each base folder, so that it is computed once and read without torch."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from finlora.bases.locate import display_name, find
from finlora.bases.spec import BaseSpec
from finlora.bases.store import ensure
from finlora.config import cache_folder
from finlora.errors import BaseModelError

SOURCE_FILE = "source.json"
FORMAT_VERSION = 2  # 1: fingerprints of an index that was not served
SOURCE_PATTERNS = ("config.json", "generation_config.json", "tokenizer.json", "*.safetensors")


def cached_spec(model: str) -> BaseSpec | None:
    """The spec of a base that is on disk and unchanged since it was computed, else None."""
    folder = find(model)
    return None if folder is None else _read(folder, display_name(model))


def remembered_spec(folder: Path, name: str, compute: Callable[[Path], BaseSpec]) -> BaseSpec:
    """The folder's spec from the cache, else computed and kept.

    Raises BaseModelError when the folder changes meanwhile.
    """
    known = _read(folder, name)
    if known is not None:
        return known
    stamps = _stamps(folder)
    spec = replace(compute(folder), name=name)
    if _stamps(folder) != stamps:
        # A copy into the folder went on: the fingerprint is of no state that will be served.
        raise BaseModelError(f"{folder} changed while it was read: try again when it is complete")

    def build(entry: Path) -> None:
        spec.save(entry)
        source = {"folder": str(folder.resolve()), "stamps": stamps}
        (entry / SOURCE_FILE).write_text(json.dumps(source), "utf-8")

    entry = _entry(folder)
    (entry / SOURCE_FILE).unlink(missing_ok=True)  # stale: no longer intact, so it is rebuilt
    ensure(entry, build)
    return spec


def all_specs() -> Iterator[tuple[Path, BaseSpec]]:
    """Source folder and spec of every base that was ever computed and is unchanged since."""
    for entry in sorted((cache_folder() / "specs").glob(f"{FORMAT_VERSION}-*")):
        try:
            folder = Path(json.loads((entry / SOURCE_FILE).read_bytes())["folder"])
            spec = _read(folder, BaseSpec.load(entry).name)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if spec is not None:
            yield folder, spec


def _read(folder: Path, name: str) -> BaseSpec | None:
    entry = _entry(folder)
    try:
        if json.loads((entry / SOURCE_FILE).read_bytes())["stamps"] != _stamps(folder):
            return None
        return replace(BaseSpec.load(entry), name=name)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(folder: Path) -> Path:
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / "specs" / f"{FORMAT_VERSION}-{key}"


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Sizes and times that change when a file of the base does."""
    files = sorted(file for pattern in SOURCE_PATTERNS for file in folder.glob(pattern))
    return {f.name: [f.stat().st_size, f.stat().st_mtime_ns] for f in files}
