"""Loads the one base model of a process, quantised, with its tokenizer and spec."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finlora.bases.architecture import check_servable, empty_model, linear_layers, read_config
from finlora.bases.locate import display_name, locate
from finlora.bases.quantized import BLOCK_SIZE, load_quantized, prepare
from finlora.bases.quiet import quiet_transformers
from finlora.bases.spec import BaseSpec
from finlora.bases.spec_cache import cached_spec, remembered_spec
from finlora.bases.tensors import fingerprint
from finlora.config import Quantization
from finlora.errors import BaseModelError, ConfigError

DEVICE_TYPES = ("cpu", "cuda")  # torch knows more, such as meta and mps
PACKED_ROWS = 32  # the packed kernel takes output rows in blocks of this size


class Shaped(Protocol):
    """A linear layer, or what is known of one."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory, in eval mode, all weights frozen."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    spec: BaseSpec
    quantization: Quantization
    compute_dtype: torch.dtype
    device: torch.device


def load_base(
    model: str,
    quantization: Quantization,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    training: bool = False,
) -> LoadedBase:
    """Load an embedded base, a local folder or a hub id. Raises BaseModelError.

    `dtype` is the compute type; None: what this device computes best. With `training` no layer ever
    changes to the packed CPU format, which passes no gradient; without it, call `pack` before the
    first forward.
    """
    folder = locate(model)
    spec = remembered_spec(folder, display_name(model), _compute_spec)
    tokenizer = _tokenizer(folder)  # before what takes long
    target = target_device(device)
    compute_dtype = dtype or best_dtype(target)
    network = load_quantized(
        folder, spec.fingerprint, quantization, dtype=compute_dtype, device=target
    )
    network.eval()
    network.requires_grad_(False)
    for layer in _layers_in_four_bits(network):
        layer.support_avx512bf16_for_cpu = not training and is_packable(layer, compute_dtype)
    return LoadedBase(network, tokenizer, spec, quantization, compute_dtype, target)


def base_spec(model: str) -> BaseSpec:
    """What adapters must fit; takes seconds the first time, and fetches the base if need be."""
    return cached_spec(model) or remembered_spec(locate(model), display_name(model), _compute_spec)


def prepare_base(model: str, quantization: Quantization, *, device: str = "auto") -> BaseSpec:
    """Fetch, check and quantise a base, so that loading it takes seconds. Raises BaseModelError."""
    folder = locate(model)
    spec = remembered_spec(folder, display_name(model), _compute_spec)
    prepare(folder, spec.fingerprint, quantization, best_dtype(target_device(device)))
    return spec


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively; float32 on other CPUs."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if has_avx512bf16() else torch.float32


def pack(model: PreTrainedModel) -> int:
    """Bring the four-bit layers into the CPU's fast format, in this thread; how many now are.

    bitsandbytes does it inside a layer's first forward, in place and without a lock: threads that
    met there would destroy the weights. Call it once, before any other thread runs the model.
    Raises BaseModelError when a layer refuses.
    """
    num_packed = 0
    for layer in _layers_in_four_bits(model):
        if layer.weight.device.type != "cpu" or not layer.support_avx512bf16_for_cpu:
            continue
        with torch.no_grad():
            layer(torch.zeros(1, layer.in_features, dtype=layer.compute_dtype))
        if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise BaseModelError("a four-bit layer did not change to the packed CPU format")
        num_packed += 1
    return num_packed


def memory_bytes(model: PreTrainedModel) -> dict[str, int]:
    """Bytes of the weights: quantized, scales, embeddings, other. Shared tensors count once."""
    parts = dict.fromkeys(("quantized", "scales", "embeddings", "other"), 0)
    seen: set[int] = set()
    for part, tensor in _weights(model):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            parts[part] += tensor.nbytes
    return parts


def measured_memory(model: str) -> dict[str, dict[str, int]]:
    """Bytes of the weights in 16, 8 and 4 bits, each loaded and looked at. Raises BaseModelError.

    The 16-bit model's linear layers stand under `linear`, as the quantised ones do.
    """
    found = {}
    for kind in (Quantization.NONE, Quantization.INT8, Quantization.NF4):
        base = load_base(model, kind, device="cpu", dtype=torch.bfloat16, training=True)
        parts = memory_bytes(base.model)
        parts["linear"] = parts.pop("quantized")
        if kind is Quantization.NONE:
            layers = base.spec.linear_layers
            parts["linear"] = sum(_weight(base.model, name).nbytes for name in layers)
            parts["other"] -= parts["linear"]
        found[str(kind)] = parts
    return found


def _weight(model: PreTrainedModel, name: str) -> torch.Tensor:
    return model.get_submodule(name).weight  # type: ignore[return-value]


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        yield from (("embeddings", parameter) for parameter in embedding.parameters())
    for module in model.modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            yield "quantized", module.weight
            yield from (("scales", scales) for scales in stored_scales(module))
    for tensor in (*model.parameters(), *model.buffers()):
        yield "other", tensor


def stored_scales(layer: nn.Module) -> list[torch.Tensor]:
    """What a quantised layer holds beside its codes."""
    weight: Any = layer.weight
    if isinstance(layer, Linear8bitLt):
        # They move from the weight to the layer's state in the first forward.
        scales: Any = layer.state.SCB if weight.SCB is None else weight.SCB
        return [scales]
    state = weight.quant_state
    return [state.absmax, state.state2.absmax] if state.nested else [state.absmax]


def _layers_in_four_bits(model: PreTrainedModel) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, Linear4bit))


def is_packable(layer: Shaped, compute_dtype: torch.dtype) -> bool:
    """Whether the packed kernel can take the layer."""
    return packing_obstacle(layer, compute_dtype) is None


def packing_obstacle(layer: Shaped, compute_dtype: torch.dtype) -> str | None:
    """Why the packed kernel cannot take the layer; None: it can.

    It computes in bfloat16 whatever its input.
    """
    if not has_avx512bf16():
        return "the CPU has no AVX512_BF16"
    if compute_dtype is not torch.bfloat16:
        return f"it computes in bfloat16, not in {str(compute_dtype).removeprefix('torch.')}"
    if layer.in_features % BLOCK_SIZE:
        return f"{layer.in_features} inputs are no multiple of {BLOCK_SIZE}"
    if layer.out_features % PACKED_ROWS:
        return f"{layer.out_features} outputs are no multiple of {PACKED_ROWS}"
    return None


def target_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = _device(name)
    if device is None or device.type not in DEVICE_TYPES:
        raise ConfigError(f"no base runs on device {name!r}: use cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device here; use --device cpu")
    return device


def _device(name: str) -> torch.device | None:
    """None: torch knows no such device."""
    try:
        return torch.device(name)
    except RuntimeError:
        return None


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    # Not AutoTokenizer: some of its classes rebuild the pre-tokenizer instead of reading it, while
    # tokenizer.json is what spec.tokenizer_hash stands for.
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
                folder, local_files_only=True
            )
    except Exception as error:  # tokenizers raises nothing narrower
        raise BaseModelError(
            f"{folder / 'tokenizer.json'} or a file that belongs to it (tokenizer_config.json, "
            f"special_tokens_map.json) cannot be read: {error!r}"
        ) from error
    # Some files carry the truncation they were saved with: prompts would be cut without a word.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _compute_spec(folder: Path) -> BaseSpec:
    config = read_config(folder)
    model = empty_model(config)
    check_servable(config, model)
    return BaseSpec(
        name=folder.name,
        architecture=type(model).__name__,
        fingerprint=fingerprint(folder),
        tokenizer_hash=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        max_position_embeddings=config.max_position_embeddings,
        eos_token_ids=_eos_token_ids(folder, config.eos_token_id),
        linear_layers=linear_layers(model),
    )


def _eos_token_ids(folder: Path, fallback: int | list[int] | None) -> tuple[int, ...]:
    """The generation config's, which chat models extend, else the model config's."""
    file = folder / "generation_config.json"
    try:
        ids = json.loads(file.read_bytes()).get("eos_token_id") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise BaseModelError(f"{file} cannot be read: {error}") from error
    match fallback if ids is None else ids:
        case None:
            return ()
        case int(one):
            return (one,)
        case [*several] if all(isinstance(each, int) for each in several):
            return tuple(several)
    raise BaseModelError(f"{file}: eos_token_id is neither an id nor a list of ids")
