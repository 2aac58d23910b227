"""Folders of the cache: built aside, moved into place whole, checked before they are used."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from finlora.errors import BaseModelError

FILES_FILE = "files.json"
MAX_HASHED_BYTES = 192 * 1024 * 1024  # 0.1 s; of larger files only both ends are hashed
END_BYTES = 1024 * 1024


def ensure(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built first when it is absent or damaged.

    `build` fills an empty folder; a kill at any moment leaves the old state, and of several
    processes one builds while the others wait. Raises BaseModelError when it cannot be written.
    """
    if is_intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not is_intact(folder):
                _rebuild(folder, build)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(_explain(error, folder)) from error
    return folder


def is_intact(folder: Path) -> bool:
    """Whether the folder holds exactly what was built: sizes, and hashes as far as they go."""
    try:
        expected = json.loads((folder / FILES_FILE).read_bytes())
        return bool(expected == _facts(folder))
    except (OSError, ValueError):
        return False


def _rebuild(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process: we hold the lock
    partial.mkdir()
    try:
        build(partial)
        (partial / FILES_FILE).write_text(json.dumps(_facts(partial), indent=1), "utf-8")
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _facts(folder: Path) -> dict[str, list[int | str]]:
    files = sorted(path for path in folder.iterdir() if path.name != FILES_FILE)
    return {path.name: [path.stat().st_size, _digest(path)] for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= MAX_HASHED_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(file.read(END_BYTES))
        file.seek(size - END_BYTES)
        digest.update(file.read())
        return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: cannot write {folder} (FINLORA_CACHE chooses another place)"
    return f"cannot write {folder}: {error}"
