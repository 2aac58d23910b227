"""EVA (arXiv 2410.07170): A starts as the directions in which a layer's inputs vary most."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.errors import ConfigError
from finlora.training.batches import Example
from finlora.training.lora_layer import TrainableLoRA

MAX_ROWS = 64
MIN_TOKENS = 256  # of one update of the decomposition


@torch.no_grad()
def start_from_activations(
    model: PreTrainedModel, layers: Mapping[str, TrainableLoRA], examples: Sequence[Example]
) -> None:
    """Set every A from the first rows. All layers keep one rank: PEFT's `rho=1`.

    Raises ConfigError when the rows have fewer tokens, or a layer fewer inputs, than the rank.
    """
    for name, layer in layers.items():
        rank, num_directions = layer.a.shape
        if rank > num_directions:
            raise ConfigError(f"eva: lora_r={rank} is above the {num_directions} inputs of {name}")
    inputs = _Inputs(layers)
    with inputs.recorded():
        for example in examples[:MAX_ROWS]:
            ids = torch.tensor([example.context + example.target], device=model.device)
            model(input_ids=ids, use_cache=False)
            inputs.update(MIN_TOKENS)
        inputs.update(1)
    for name, layer in layers.items():
        layer.a.copy_(inputs.directions(name))


class _Inputs:
    """What the layers are given, decomposed bit by bit; layers with the same input share it."""

    def __init__(self, layers: Mapping[str, TrainableLoRA]) -> None:
        self._layers = layers
        self._owners: dict[str, str] = {}  # layer -> the layer whose input is the same
        self._waiting: dict[str, list[Tensor]] = {}
        self._decompositions: dict[str, Any] = {}
        self._last: tuple[str, Tensor] | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        hooks = [
            layer.register_forward_pre_hook(self._hook(name))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._last is not None and self._last[1] is inputs[0]:
                self._owners[name] = self._last[0]
                return
            self._owners[name] = name
            self._last = (name, inputs[0])
            self._waiting.setdefault(name, []).append(inputs[0].flatten(0, -2).float())

        return record

    def update(self, min_tokens: int) -> None:
        """Take in what waits, where it is enough."""
        for name, waiting in self._waiting.items():
            rank = self._layers[name].settings.rank
            if sum(map(len, waiting)) < max(min_tokens, rank):
                continue
            pca = self._decompositions.setdefault(
                name, IncrementalPCA(n_components=rank, lowrank=True, lowrank_seed=0)
            )
            pca.partial_fit(torch.cat(waiting))
            waiting.clear()
        self._last = None

    def directions(self, name: str) -> Tensor:
        """[rank, in_features], orthonormal."""
        pca = self._decompositions.get(self._owners[name])
        if pca is None:
            raise ConfigError("eva: the training rows have fewer tokens than lora_r")
        components: Tensor = pca.components_
        return components
