"""Puts the weights of a finished adapter into layers that can learn."""

from collections.abc import Mapping

import torch

from finlora.adapters.adapter import LoRAConfig
from finlora.adapters.validation import parse_weights
from finlora.bases.spec import BaseSpec
from finlora.errors import AdapterIncompatibleError
from finlora.training.lora_layer import TrainableLoRA


@torch.no_grad()
def load_weights(
    layers: Mapping[str, TrainableLoRA], config: LoRAConfig, weights: bytes, spec: BaseSpec
) -> None:
    """Overwrite the layers' own start. Raises AdapterError when they are not of the same kind."""
    stored = parse_weights(config, weights, spec, max_rank=config.r)
    if stored.keys() != layers.keys():
        raise AdapterIncompatibleError("the adapter to start from adapts other layers")
    for name, layer in layers.items():
        settings = layer.settings
        if (stored[name].rank, stored[name].scaling) != (settings.rank, settings.scaling):
            raise AdapterIncompatibleError(
                f"{name}: the adapter to start from has rank {stored[name].rank} and scaling "
                f"{stored[name].scaling}, configured are {settings.rank} and {settings.scaling}"
            )
        magnitude = stored[name].magnitude
        if (magnitude is None) != (layer.magnitude is None):
            raise AdapterIncompatibleError("one is DoRA, the other is not")
        layer.a.copy_(stored[name].a)
        layer.b.copy_(stored[name].b)
        if layer.magnitude is not None and magnitude is not None:
            layer.magnitude.copy_(magnitude)
