"""What a layer is given: the second moments of its inputs over some text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finlora.bases.spec import LinearShape
from finlora.engine.siblings import LayerGroup, group_layers
from finlora.model import LoadedBase

MAX_MOMENT_BYTES = 2 * 2**30  # held at a time; more layers take more passes over the text


@torch.no_grad()
def input_moments(
    base: LoadedBase, layers: Mapping[str, LinearShape], batches: Sequence[Tensor]
) -> Iterator[tuple[LayerGroup, Tensor]]:
    """For layers that read the same input, the mean of x x^T: [in_features, in_features]."""
    for groups in _passes(group_layers(layers)):
        sums = {group.names[0]: _zeros(group, base.device) for group in groups}
        hooks = [
            base.model.get_submodule(name).register_forward_pre_hook(_adder(total))
            for name, total in sums.items()
        ]
        try:
            for ids in batches:
                base.model.get_decoder()(input_ids=ids.to(base.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        num_tokens = sum(ids.numel() for ids in batches)
        for group in groups:
            yield group, sums.pop(group.names[0]) / num_tokens


def _passes(groups: Sequence[LayerGroup]) -> Iterator[list[LayerGroup]]:
    chosen: list[LayerGroup] = []
    num_bytes = 0
    for group in groups:
        needed = 4 * group.in_features**2
        if chosen and num_bytes + needed > MAX_MOMENT_BYTES:
            yield chosen
            chosen, num_bytes = [], 0
        chosen.append(group)
        num_bytes += needed
    yield chosen


def _zeros(group: LayerGroup, device: torch.device) -> Tensor:
    return torch.zeros(group.in_features, group.in_features, device=device)


def _adder(total: Tensor) -> Any:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).float()
        total.addmm_(rows.T, rows)

    return add
