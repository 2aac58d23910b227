"""Checks every stored version again: its digest, and its weights against the base."""

from dataclasses import dataclass

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_compatible
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.validation import parse_weights
from finlora.bases.spec import BaseSpec
from finlora.config import Quantization
from finlora.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about one version."""

    name: str
    digest: str
    is_current: bool
    problem: str | None
    warnings: list[str]


def verify(
    registry: AdapterRegistry,
    names: list[str],
    spec: BaseSpec,
    quantization: Quantization,
    *,
    max_rank: int,
) -> list[Verdict]:
    """One verdict for each version of each name; a broken one does not stop the others."""
    return [
        _verify_version(registry, name, digest, spec, quantization, max_rank)
        for name in names
        for digest in registry.digests(name)
    ]


def _verify_version(
    registry: AdapterRegistry,
    name: str,
    digest: str,
    spec: BaseSpec,
    quantization: Quantization,
    max_rank: int,
) -> Verdict:
    is_current = digest == registry.digests(name)[0]
    try:
        adapter = registry.resolve(f"{name}@{digest}")
        warnings = _check(registry, adapter, spec, quantization, max_rank)
    except AdapterError as error:
        return Verdict(name, digest, is_current, str(error), [])
    return Verdict(name, digest, is_current, None, warnings)


def _check(
    registry: AdapterRegistry,
    adapter: Adapter,
    spec: BaseSpec,
    quantization: Quantization,
    max_rank: int,
) -> list[str]:
    weights = registry.read(adapter)
    trained_on = adapter.manifest.base_fingerprint
    if trained_on is not None and trained_on != spec.fingerprint:
        return [f"made for another base ({adapter.manifest.base_name}): files sound, not served"]
    parse_weights(adapter.config, weights, spec, max_rank=max_rank)
    return check_compatible(adapter, spec, quantization, strict=False)
