"""Adapter weights become tensors here, or are refused with the reason. Knows no registry."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from finlora.adapters.adapter import LoRAConfig
from finlora.adapters.peft_config import module_rank, module_scaling
from finlora.bases.spec import BaseSpec, LinearShape
from finlora.errors import AdapterIncompatibleError, AdapterLoadError

MAX_HEADER_BYTES = 8 * 1024 * 1024
DTYPES = ("F32", "F16", "BF16")
LARGEST_VALUE = 65504.0  # of float16; no trained weight comes near, larger ones overflow products
LFS_POINTER = b"version https://git-lfs"
KEY_PREFIX = "base_model.model."
ROLES = {
    ".lora_A.weight": "a",
    ".lora_A.default.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.default.weight": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
}


@dataclass(frozen=True, slots=True)
class LoRALayer:
    """The tensors of one adapted layer, in the type they are stored in."""

    a: torch.Tensor  # [rank, in_features]
    b: torch.Tensor  # [out_features, rank]
    magnitude: torch.Tensor | None  # [out_features]; DoRA only
    scaling: float

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.a.shape[0]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the layer, by its role."""
        yield "a", self.a
        yield "b", self.b
        if self.magnitude is not None:
            yield "magnitude", self.magnitude


def max_weights_bytes(spec: BaseSpec, max_rank: int) -> int:
    """The largest weights file that can be valid for this base: every layer, float32."""
    sizes = (
        (shape.in_features + shape.out_features) * max_rank + shape.out_features
        for shape in spec.linear_layers.values()
    )
    return 4 * sum(sizes) + MAX_HEADER_BYTES


def parse_weights(
    config: LoRAConfig, weights: bytes, spec: BaseSpec, *, max_rank: int
) -> dict[str, LoRALayer]:
    """The layers of a safetensors file, by module name of the base.

    Raises AdapterLoadError when the file is broken, AdapterIncompatibleError when it is sound but
    does not fit this base or these limits.
    """
    if len(weights) > max_weights_bytes(spec, max_rank):
        raise AdapterIncompatibleError(
            f"{len(weights)} bytes of weights are more than rank {max_rank} on {spec.name} can have"
        )
    _check_header(weights, max_tensors=3 * len(spec.linear_layers))
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError) as error:
        raise AdapterLoadError(f"the weights are not valid safetensors: {error}") from error
    modules = _by_module(tensors, spec)
    layers = {
        module: _layer(module, modules[module], config, shape, max_rank)
        for module, shape in spec.linear_layers.items()
        if module in modules
    }
    _check_numbers(layers)
    _check_effect(layers.values())
    return layers


def _check_header(weights: bytes, *, max_tensors: int) -> None:
    """Bound what the parser is given; it accepts any number of tensors of any type."""
    length = int.from_bytes(weights[:8], "little")
    if weights.startswith(LFS_POINTER):
        raise AdapterLoadError("the weights are a Git LFS pointer: `git lfs pull` brings the file")
    if len(weights) < 8 or length > len(weights) - 8:
        raise AdapterLoadError(
            f"the weights are not valid safetensors: {len(weights)} bytes, "
            "truncated within the header or of another format"
        )
    if length > MAX_HEADER_BYTES:
        raise AdapterLoadError(f"the safetensors header is larger than {MAX_HEADER_BYTES} bytes")
    try:
        header = json.loads(weights[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise AdapterLoadError(f"the safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise AdapterLoadError("the safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    if not header:
        raise AdapterLoadError("the weights hold no tensors")
    if len(header) > max_tensors:
        raise AdapterIncompatibleError(
            f"{len(header)} tensors are more than the base has layers for ({max_tensors})"
        )
    for key, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if dtype not in DTYPES:
            raise AdapterLoadError(f"{key} is of type {dtype!r}; accepted are {', '.join(DTYPES)}")


def _by_module(
    tensors: dict[str, torch.Tensor], spec: BaseSpec
) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors sorted by module and role; every key must name a layer of this base."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in sorted(tensors.items()):
        module, role = _split_key(key)
        if module not in spec.linear_layers:
            raise AdapterIncompatibleError(
                f"{key}: {spec.name} has no layer {module!r} that can be adapted"
            )
        parts = modules.setdefault(module, {})
        if role in parts:
            raise AdapterLoadError(f"{key}: this tensor is there twice, under two names")
        parts[role] = tensor
    return modules


def _split_key(key: str) -> tuple[str, str]:
    for suffix, role in ROLES.items():
        if key.startswith(KEY_PREFIX) and key.endswith(suffix):
            return key[len(KEY_PREFIX) : -len(suffix)], role
    raise AdapterLoadError(f"{key} is not a LoRA tensor of a linear layer in PEFT's naming")


def _layer(
    module: str,
    parts: dict[str, torch.Tensor],
    config: LoRAConfig,
    shape: LinearShape,
    max_rank: int,
) -> LoRALayer:
    rank = module_rank(config, module)
    if rank > max_rank:
        raise AdapterIncompatibleError(f"{module}: rank {rank} is above the limit of {max_rank}")
    expected: dict[str, tuple[int, ...]] = {
        "a": (rank, shape.in_features),
        "b": (shape.out_features, rank),
    }
    if config.use_dora:
        expected["magnitude"] = (shape.out_features,)
    if parts.keys() != expected.keys():
        raise AdapterLoadError(
            f"{module}: has {_role_names(parts)}, must have {_role_names(expected)}"
        )
    if parts["a"].shape[:1] != (rank,):
        raise AdapterLoadError(
            f"{module}: A has shape {list(parts['a'].shape)}, its rank by adapter_config.json "
            f"is {rank}"
        )
    for role, role_shape in expected.items():
        _check_shape(f"{module}: {role.upper()}", parts[role], role_shape)
    magnitude = parts.get("magnitude")
    if magnitude is not None and not bool((magnitude > 0).all()):
        raise AdapterLoadError(f"{module}: DoRA magnitudes must be positive")
    return LoRALayer(parts["a"], parts["b"], magnitude, module_scaling(config, module))


def _role_names(roles: Iterable[str]) -> str:
    return ", ".join(sorted(role.upper() for role in roles))


def _check_shape(what: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise AdapterIncompatibleError(
            f"{what} has shape {list(tensor.shape)}; this base needs {list(shape)}"
        )


def _check_numbers(layers: Mapping[str, LoRALayer]) -> None:
    """Those of a shape at once, and one by one where that fails: 400 tensors' calls take 30 ms."""
    named = {
        f"{module}: {role.upper()}": tensor
        for module, layer in layers.items()
        for role, tensor in layer.tensors()
    }
    alike: dict[tuple[object, ...], list[torch.Tensor]] = {}
    for tensor in named.values():
        alike.setdefault((tensor.dtype, tensor.shape), []).append(tensor)
    if all(_is_within_bounds(torch.stack(tensors)) for tensors in alike.values()):
        return
    for what, tensor in named.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterLoadError(f"{what} holds values that are not finite (NaN or infinity)")
        if not _is_within_bounds(tensor):
            raise AdapterLoadError(f"{what} holds values beyond {LARGEST_VALUE:.0f}")


def _is_within_bounds(tensor: torch.Tensor) -> bool:
    """Whether no value is larger; NaN, which `aminmax` hands on, is within no bounds."""
    least, largest = tensor.aminmax()
    return float(least) >= -LARGEST_VALUE and float(largest) <= LARGEST_VALUE


def _check_effect(layers: Iterable[LoRALayer]) -> None:
    """A rank index changes the layer only where its row of A and its column of B are both set."""
    for layer in layers:
        if bool(((layer.a != 0).any(dim=1) & (layer.b != 0).any(dim=0)).any()):
            return
    raise AdapterLoadError("the adapter changes nothing: B A is zero in every layer")
