"""Whether the rows a run judges by were held out from earlier versions too, by their manifests."""

from collections.abc import Iterator
from typing import Any

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.errors import AdapterError
from finlora.training.config import TrainingConfig
from finlora.training.preparation import Dataset


def doubt_about(
    reference: str | None, registry: AdapterRegistry, config: TrainingConfig, dataset: Dataset
) -> str | None:
    """Why a version, or one that it started from, may have learned rows of this validation set.

    None: there is no such version, or no sign of it in what the manifests say.
    """
    for version in _line(reference, registry):
        if reason := _difference(version.manifest, config, dataset):
            return f"{version.reference} may have learned some of these rows: {reason}"
    return None


def _line(reference: str | None, registry: AdapterRegistry) -> Iterator[Adapter]:
    """A version, the one that it started from, and so on, as far as they are still there."""
    seen: set[str] = set()
    while reference is not None and reference not in seen:
        seen.add(reference)
        try:
            adapter = registry.resolve(reference)
        except AdapterError:
            return
        yield adapter
        reference = _facts(adapter.manifest).get("initial_adapter")


def _difference(manifest: Manifest, config: TrainingConfig, dataset: Dataset) -> str | None:
    """A text is held out by its hash, so whoever held out a larger share held out these as well."""
    settings = _facts(manifest).get("config")
    share = settings.get("val_fraction") if isinstance(settings, dict) else None
    if not isinstance(share, float):  # trained elsewhere, or on unlabelled text
        return None
    ours, theirs = (_held_out(entries) for entries in (dataset.sources(), manifest.data or []))
    if ours or theirs:
        return None if ours and ours <= theirs else "its validation rows were given in other files"
    if share < config.val_fraction:
        return f"it held out {share:g} of the texts, this run {config.val_fraction:g}"
    return None


def _facts(manifest: Manifest) -> dict[str, Any]:
    return manifest.training or {}


def _held_out(entries: list[dict[str, Any]]) -> set[str]:
    """Hashes of the files that somebody else's split held out; texts in them are never learned."""
    return {str(entry.get("sha256")) for entry in entries if entry.get("held_out")}
