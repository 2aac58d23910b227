"""What a base computes, read from its config and an empty model: its layers, and whether the
engine can serve it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from finlora.bases.quiet import quiet_transformers
from finlora.bases.spec import LinearShape
from finlora.errors import BaseModelError

SERVED_LAYER_TYPES = {"full_attention", "sliding_attention"}


def read_config(folder: Path) -> PreTrainedConfig:
    """The folder's config. Raises BaseModelError when it is broken or of an unknown type."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers trips over a wrong value anywhere
        raise BaseModelError(f"{folder / 'config.json'} cannot be read: {_why(error)}") from error
    return config


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights. Raises BaseModelError when it is not a causal language model."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BaseModelError(f"{config.model_type} is not a causal language model")
    try:
        with torch.device("meta"), quiet_transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # as above
        raise BaseModelError(
            f"no {config.model_type} can be built as config.json says: {_why(error)}"
        ) from error
    return model


def _why(error: Exception) -> str:
    """In one line; errors of the config's own checks wrap what they found."""
    found = error.__cause__ if isinstance(error, StrictDataclassError) else None
    return repr(error) if isinstance(error, KeyError) else str(found or error).partition("\n")[0]


def linear_layers(model: PreTrainedModel) -> dict[str, LinearShape]:
    """The decoder's linear layers: those that are quantised and can carry an adapter."""
    head = model.get_output_embeddings()
    return {
        name: LinearShape(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def check_servable(config: PreTrainedConfig, model: PreTrainedModel) -> None:
    """Raises BaseModelError with the first reason why the engine would compute it wrongly."""
    for reason in _reasons(model, config):
        raise BaseModelError(f"{config.model_type} cannot be served: {reason}")


def _reasons(model: PreTrainedModel, config: Any) -> Iterator[str]:
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder"
    if config.get_text_config() is not config:
        yield "it is a multimodal model; its text-only version may be served"
    if getattr(config, "quantization_config", None) is not None:
        yield "its weights are quantised already; name the 16-bit original"
    if not linear_layers(model):
        yield "it has no plain linear layers"
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        yield "its config does not say how long a context may be"
    yield from _attention_reasons(model, config)
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            yield "its attention has sinks"
        if parameter.dim() == 3 or ".experts." in name:
            yield "it is a mixture of experts, whose expert weights would stay unquantised"


def _attention_reasons(model: PreTrainedModel, config: Any) -> Iterator[str]:
    if not type(model).is_backend_compatible() or model._is_stateful:
        yield "its attention cannot be replaced by a paged one"
    if "dynamic" in _rope_types(getattr(config, "rope_parameters", None)):
        yield "its rotary embedding ('dynamic') depends on the longest row of a batch"
    unknown = set(getattr(config, "layer_types", None) or ()) - SERVED_LAYER_TYPES
    if unknown:
        yield f"it has layers of type {', '.join(sorted(unknown))}"
    if getattr(config, "num_kv_shared_layers", 0):
        yield "its layers share keys and values"
    layers = [module for module in model.modules() if hasattr(module, "is_causal")]
    if len(layers) != config.num_hidden_layers or not all(layer.is_causal for layer in layers):
        yield "not every layer has one causal self-attention"
    if not _has_uniform_heads(model, layers, config):
        yield "the sizes of its attention heads are not the same everywhere"


def _rope_types(parameters: Any) -> set[str]:
    """Rotary types of a config; some give one set of parameters for each layer type."""
    if not isinstance(parameters, dict):
        return set()
    types = {parameters["rope_type"]} if "rope_type" in parameters else set()
    return types.union(*(_rope_types(value) for value in parameters.values()))


def _has_uniform_heads(model: PreTrainedModel, layers: list[nn.Module], config: Any) -> bool:
    head_dims = {getattr(layer, "head_dim", None) for layer in layers}
    if len(head_dims) != 1 or getattr(config, "kv_lora_rank", None) is not None:
        return False  # before anything else: some configs raise when asked for "the" size
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_sizes = {
        layer.out_features
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith((".k_proj", ".v_proj"))
    }
    return head_dims == {head_dim} and kv_sizes <= {num_kv_heads * head_dim}
