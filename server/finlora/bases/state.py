"""What of each known base is on disk. No torch."""

from dataclasses import dataclass
from pathlib import Path

from finlora.bases.checkpoints import checkpoint_bytes
from finlora.bases.embedded import EMBEDDED
from finlora.bases.locate import find
from finlora.bases.spec import BaseSpec
from finlora.bases.spec_cache import all_specs, cached_spec


@dataclass(frozen=True, slots=True)
class BaseState:
    """A base and its files; `spec` is None until it was computed."""

    name: str
    embedded: bool
    folder: Path | None  # None: not fetched
    source_bytes: int
    quantized_bytes: dict[str, int]  # "nf4-bfloat16" -> size of that checkpoint
    spec: BaseSpec | None


def known_bases() -> list[BaseState]:
    """The embedded bases, and every local folder or hub model used before."""
    bases = {name: base_state(name) for name in EMBEDDED}
    for folder, spec in all_specs():
        if spec.name not in bases:
            bases[spec.name] = _state(spec.name, folder, spec)
    return list(bases.values())


def base_state(model: str) -> BaseState:
    """The state of an embedded base, a local folder or a hub id; nothing is fetched."""
    return _state(model, find(model), cached_spec(model))


def _state(name: str, folder: Path | None, spec: BaseSpec | None) -> BaseState:
    return BaseState(
        name=name,
        embedded=name in EMBEDDED,
        folder=folder,
        source_bytes=0 if folder is None else _num_bytes(folder),
        quantized_bytes={}
        if folder is None or spec is None
        else checkpoint_bytes(folder, spec.fingerprint),
        spec=spec,
    )


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
