"""Where rows come from: files beside the configuration, or data sets of the hub."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from finlora.errors import ConfigError

SUFFIXES = (".parquet", ".jsonl", ".csv")  # the first kind that a hub data set has is read
ORIGIN_SUFFIX = ".sources.json"  # after the name of a data file: who its rows are from
HUB_DATA_SET = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w-]+))?"
)


def dataset_files(paths: Iterable[str], folder: Path) -> list[Path]:
    """Data files; relative paths count from `folder`. Raises ConfigError.

    What is no file may be a hub data set: `owner/name`, `owner/name:split`, `owner/name@revision`.
    """
    return [file for path in paths for file in _files_of(path, folder)]


def file_hash(file: Path) -> str:
    """SHA-256 of a data file, for the manifest."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def hub_snapshot(data_set: str, revision: str | None = None) -> Path:
    """Folder of a hub data set, fetched first if need be. Raises ConfigError in one sentence."""
    patterns = [f"*{suffix}" for suffix in (*SUFFIXES, ".zip", ".txt", ".xlsx")]
    try:
        return Path(
            snapshot_download(
                data_set, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        )
    except GatedRepoError as error:
        raise ConfigError(
            f"data set {data_set} is gated: accept its terms on the hub and log in "
            "(`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"data set {data_set} is not on the hub (or is private)") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"data set {data_set} is not in the hub's local cache and the hub cannot be reached"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"cannot fetch data set {data_set}: {error}") from error


def table_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a data set's folder, of one split where one is named."""
    for suffix in SUFFIXES:
        found = sorted(file for file in folder.rglob(f"*{suffix}") if _is_of(file, folder, split))
        if found:
            return found
    return []


def _files_of(path: str, folder: Path) -> Iterator[Path]:
    local = folder / Path(path).expanduser()
    if local.is_file():
        yield local
        return
    hub = HUB_DATA_SET.fullmatch(path)
    if hub is None or local.suffix in SUFFIXES:
        raise ConfigError(f"there is no data file {local}{_hint(local)}")
    files = table_files(hub_snapshot(hub["id"], hub["revision"]), hub["split"])
    if not files:
        raise ConfigError(f"data set {path} has no {', '.join(SUFFIXES)} files")
    yield from files


def _is_of(file: Path, folder: Path, split: str | None) -> bool:
    if file.with_name(file.name + ORIGIN_SUFFIX).exists():  # one that we made, of such files
        return False
    words = re.split(r"[^a-z0-9]+", str(file.relative_to(folder)).lower())
    return split is None or split.lower() in words


def _hint(file: Path) -> str:
    from finlora.datasets.tasks import task_of_file

    task = task_of_file(file.name)
    return f": `finlora data prepare {task}` makes it" if task else ""
