"""Judges a PEFT folder against a base and registers it. Every refusal comes before any write."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finlora.adapters.adapter import Adapter, LoRAConfig, Manifest, first_problem
from finlora.adapters.compatibility import check_compatible
from finlora.adapters.peft_config import parse_config
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.source import PeftFolder, read_peft_folder
from finlora.adapters.validation import max_weights_bytes, parse_weights
from finlora.bases.spec import BaseSpec
from finlora.config import Quantization
from finlora.errors import AdapterError

VARIANT_BITS = {"nf4": "4bits", "fp4": "4bits", "int8": "8bits", "none": "16bits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an adapter will run on, and what its user says of it. None: says nothing."""

    spec: BaseSpec
    quantization: Quantization
    max_rank: int
    strict: bool = False
    trained_here: bool = False  # the user states that this very base is the one trained on
    trained_quantization: Quantization | None = None
    labels: list[str] | None = None
    prompt_template: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """A registered adapter and what its user should know about it."""

    adapter: Adapter
    num_layers: int
    warnings: list[str]


def add_folder(
    registry: AdapterRegistry, folder: Path, name: str, variant: str | None, target: Target
) -> Added:
    """Register a folder. Raises AdapterError with the reason, leaving the registry as it was."""
    source = read_peft_folder(
        folder, max_weights_bytes=max_weights_bytes(target.spec, target.max_rank)
    )
    config = parse_config(source.config)
    layers = parse_weights(config, source.weights, target.spec, max_rank=target.max_rank)
    manifest = build_manifest(source, target)
    warnings = check_compatible(
        manifest, target.spec, target.quantization, strict=target.strict
    ) + _base_warnings(source, target)
    adapter = registry.register(
        name,
        variant or default_variant(config, manifest),
        source.config,
        source.weights,
        manifest,
        source.extra_files,
    )
    if adapter.manifest.model_copy(update={"created": manifest.created}) != manifest:
        warnings.append("this very version was there before; the facts recorded then are kept")
    return Added(adapter, len(layers), warnings)


def build_manifest(source: PeftFolder, target: Target) -> Manifest:
    """The folder's own manifest, or an empty one, completed by what the user states.

    Raises AdapterError when that cannot be so.
    """
    manifest = source.manifest or Manifest(base_name=source.stated_base)
    stated: dict[str, Any] = {
        "labels": target.labels,
        "prompt_template": target.prompt_template,
        "licence": target.licence,
        "created": manifest.created or datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if target.trained_here:
        stated["base_name"] = target.spec.name
        stated["base_fingerprint"] = manifest.base_fingerprint or target.spec.fingerprint
        stated["tokenizer_hash"] = manifest.tokenizer_hash or target.spec.tokenizer_hash
    if target.trained_quantization is not None:
        stated["quantization"] = {"type": target.trained_quantization.value}
    given = {key: value for key, value in stated.items() if value is not None}
    if target.prompt_template not in (None, manifest.prompt_template):
        given["prompt_format_hash"] = None  # it covered the template that is replaced
    try:
        return Manifest.model_validate(manifest.model_dump() | given)
    except ValidationError as error:
        raise AdapterError(first_problem(error)) from error


def default_variant(config: LoRAConfig, manifest: Manifest) -> str:
    """FinLoRA's way to name a setting: 4bits_r4, 8bits_r8_dora, 8bits_r8_rslora."""
    bits = VARIANT_BITS.get(manifest.quantization.type, "other")
    suffix = "_dora" * config.use_dora + "_rslora" * config.use_rslora
    return f"{bits}_r{config.r}{suffix}"


def _base_warnings(source: PeftFolder, target: Target) -> list[str]:
    stated = source.stated_base
    if stated is None or _short(stated) == _short(target.spec.name):
        return []
    return [f"adapter_config.json names the base {stated!r}; checked against {target.spec.name!r}"]


def _short(base: str) -> str:
    return base.rsplit("/", 1)[-1].lower()
