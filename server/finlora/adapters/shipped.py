"""The registry a process uses; a new one in the user's data folder gets the shipped adapters."""

import os
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Of its own, whatever other processes or containers do on the same volume.
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as aside:
            complete = Path(aside) / folder.name
            _copy(AdapterRegistry(shipped), AdapterRegistry(complete, who="finlora"))
            os.rename(complete, folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been quicker
            raise AdapterError(f"cannot set up the registry {folder}: {error}") from error


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
