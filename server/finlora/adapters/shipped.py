"""The registry a process uses; a new one in the user's data folder gets the shipped adapters."""

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.source import read_peft_folder
from finlora.config import Settings, registry_folder
from finlora.errors import AdapterError

SHIPPED_FOLDER = "_shipped"
MAX_SHIPPED_BYTES = 256 * 1024 * 1024


def open_registry(settings: Settings, *, who: str | None = None) -> AdapterRegistry:
    """The registry named by the settings, or the default one, filled when it is new."""
    folder = registry_folder(settings)
    if settings.registry is None and not folder.exists():
        with as_file(files("finlora") / SHIPPED_FOLDER) as shipped:
            if shipped.is_dir():
                seed(folder, shipped)
    return AdapterRegistry(folder, who=who)


def seed(folder: Path, shipped: Path) -> None:
    """Make a registry that serves what another one serves; the digests stay the same."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        _copy(AdapterRegistry(shipped), AdapterRegistry(aside, who="finlora"))
        os.rename(aside, folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been quicker
            raise AdapterError(f"cannot set up the registry {folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy(source: AdapterRegistry, target: AdapterRegistry) -> None:
    for adapter in source.current():
        source.read(adapter)
        content = read_peft_folder(adapter.folder, max_weights_bytes=MAX_SHIPPED_BYTES)
        target.register(
            adapter.name,
            adapter.variant,
            content.config,
            content.weights,
            adapter.manifest,
            content.extra_files,
        )
