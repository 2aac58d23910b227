"""The cache folder, the base in it, and the registry. No torch."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_compatible, check_limits
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.checkpoints import KEPT_QUANTISED
from finlora.bases.spec import BaseSpec
from finlora.bases.state import BaseState
from finlora.config import GIB, Settings, cache_folder, registry_folder
from finlora.doctor.findings import Finding, note, ok, problem
from finlora.errors import AdapterError, AdapterIncompatibleError

ENOUGH_BYTES = 2 * GIB  # the default base takes 0.5 GB, fetched and quantised


def check_cache() -> Iterator[Finding]:
    """Whether bases can be kept."""
    folder = cache_folder()
    there = _existing(folder)
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield problem("cache", f"{folder} cannot be written", "let FINLORA_CACHE name another")
        return
    free = shutil.disk_usage(there).free
    text, facts = (
        f"{folder}, {free / GIB:.1f} GiB free",
        {"folder": str(folder), "free_bytes": free},
    )
    if free >= ENOUGH_BYTES:
        yield ok("cache", text, **facts)
    else:
        yield note("cache", text, "make room, or let FINLORA_CACHE name another folder", **facts)


def check_base(model: str, state: BaseState, settings: Settings) -> Iterator[Finding]:
    """Whether the first start has to fetch or quantise."""
    kinds = list(state.quantized_bytes)
    facts = {"name": model, "fetched": state.folder is not None, "quantized": kinds}
    prepared = settings.quantization not in KEPT_QUANTISED or any(
        kind.startswith(f"{settings.quantization}-") for kind in kinds
    )
    if state.folder is not None and prepared:
        yield ok("base", f"{model} is on disk, {settings.quantization}", **facts)
        return
    missing = "not fetched" if state.folder is None else f"not prepared as {settings.quantization}"
    yield note(
        "base",
        f"{model} is {missing} yet: the first start takes longer",
        f"finlora models fetch {model} --quantization {settings.quantization}",
        **facts,
    )


def check_registry(settings: Settings, base: BaseState) -> Iterator[Finding]:
    """Whether every adapter can be served."""
    folder = registry_folder(settings)
    if not folder.exists():
        yield note("registry", f"{folder} is not there yet", "finlora adapters add FOLDER --name N")
        return
    try:
        registry = AdapterRegistry(folder)
        adapters, broken = registry.current(), registry.broken()
    except AdapterError as error:
        yield problem("registry", str(error), "let --registry name another folder")
        return
    yield ok("registry", f"{folder}, {len(adapters)} adapters", folder=str(folder),
             adapters=[adapter.reference for adapter in adapters])  # fmt: skip
    for name, reason in broken.items():
        yield problem("registry", f"{name}: {reason}", f"finlora adapters rollback {name}")
    for path in registry.unregistered():
        yield note("registry", f"{path} is not registered", f"finlora adapters add {path} --name N")
    if base.spec is None:
        return
    for adapter in adapters:
        refusal = _refusal(adapter, base.spec, settings)
        if refusal is not None:
            yield note("registry", f"{adapter.name} is not served: {refusal[0]}", refusal[1])


def _refusal(
    adapter: Adapter, spec: BaseSpec, settings: Settings
) -> tuple[AdapterIncompatibleError, str] | None:
    """Why a server with the settings would not serve the adapter, and what helps."""
    what_helps = "serve its own base"
    try:
        check_compatible(adapter, spec, settings.quantization, strict=settings.strict)
        what_helps = "raise the limit"
        check_limits(
            adapter.config, max_loras=settings.max_loras, max_lora_rank=settings.max_lora_rank
        )
    except AdapterIncompatibleError as error:
        return error, what_helps
    return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return folder if folder.exists() else _existing(folder.parent)
