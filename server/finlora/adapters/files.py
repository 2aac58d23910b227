"""Durable file operations of the registry: written aside, synced, moved into place, one writer."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finlora.errors import AdapterError, AdapterLoadError

LOCK_FILE = ".lock"
STAGING_FOLDER = ".staging"


@contextmanager
def writer(root: Path) -> Iterator[Path]:
    """Exclusive right to change the registry; yields an empty folder to prepare the change in.

    Whatever lies in the staging folder when the lock is taken was left by a killed writer.
    Raises AdapterError for what the file system refuses (permission, no space, ...).
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            staging = root / STAGING_FOLDER
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise AdapterError(f"the registry {root} cannot be changed: {error}") from error


def write_file(path: Path, content: bytes) -> None:
    """A new file, on disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes, staging: Path) -> None:
    """Swap the file's content: a reader, or a crash, sees the old one or the new one."""
    aside = staging / f"{path.name}.new"
    write_file(aside, content)
    os.replace(aside, path)
    sync_folder(path.parent)


def move_folder(source: Path, target: Path) -> None:
    """Move a prepared folder, whose files are synced, to its final place."""
    sync_folder(source)
    make_folder(target.parent)
    os.rename(source, target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new entries in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: bytes) -> None:
    """Add a line durably; one that a crash cut short is ended first."""
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The whole of a regular file. Raises AdapterLoadError when it is missing or too large."""
    try:
        if not path.is_file():
            raise AdapterLoadError(f"{path.name} is missing in {path.parent}")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise AdapterLoadError(f"{path.name} is larger than {max_bytes} bytes")
            return file.read()
    except OSError as error:
        raise AdapterLoadError(f"{path} cannot be read: {error.strerror}") from error
