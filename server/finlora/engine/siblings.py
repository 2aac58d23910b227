"""Layers that read the same input run as one product: query, key and value; gate and up.

Half of a decode step on a small base is the cost of starting operations. The model still calls each
layer by itself: the first call computes all siblings, the others take what is theirs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finlora.bases.spec import LinearShape
from finlora.engine.packed_linear import PackedLinear
from finlora.engine.paired_linear import PairedLinear
from finlora.engine.panel_linear import PanelLinear
from finlora.engine.unpacked_linear import UnpackedLinear

# Kinds of four-bit layers, which join and multiply without their bias by themselves.
FOUR_BIT = (PackedLinear, PairedLinear, PanelLinear, UnpackedLinear)
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Siblings, or a layer that has none, by full names."""

    names: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]

    @property
    def columns(self) -> list[slice]:
        """Where each layer's outputs lie among those of all."""
        ends = [sum(self.out_features[: i + 1]) for i in range(len(self.names))]
        return [slice(end - n, end) for end, n in zip(ends, self.out_features, strict=True)]


def group_layers(layers: Mapping[str, LinearShape]) -> list[LayerGroup]:
    """Every layer in one group, in the order of the first of each."""
    grouped: dict[str, LayerGroup] = {}
    for name in layers:
        names = _siblings(name, layers)
        if names[0] not in grouped:
            sizes = tuple(layers[n].out_features for n in names)
            grouped[names[0]] = LayerGroup(names, layers[name].in_features, sizes)
    return list(grouped.values())


def _siblings(name: str, layers: Mapping[str, LinearShape]) -> tuple[str, ...]:
    parent, _, own = name.rpartition(".")
    for family in SIBLINGS:
        names = tuple(f"{parent}.{member}" for member in family)
        if own in family and all(n in layers for n in names):
            widths = {layers[n].in_features for n in names}
            return names if len(widths) == 1 else (name,)
    return (name,)


class Siblings(nn.Module):
    """Layers that cannot be joined into one matrix, side by side."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def weight(self) -> Tensor:
        """The first layer's weight, for code that looks at its type or device."""
        return self.layers[0].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The layers' biases in a row; zeros where only some have one."""
        return _joined_bias(list(self.layers))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., sum of out_features]."""
        return torch.cat([layer(x) for layer in self.layers], -1)


def join(layers: list[nn.Module]) -> nn.Module:
    """One layer whose outputs are those of all layers in a row."""
    if len(layers) == 1:
        return layers[0]
    for kind in FOUR_BIT:
        if all(isinstance(layer, kind) for layer in layers):
            return kind.joined(layers, _joined_bias(layers))  # type: ignore[arg-type]
    if all(type(layer) is nn.Linear for layer in layers):
        return _joined_linear(layers)
    return Siblings(layers)


def _joined_linear(layers: list[nn.Module]) -> nn.Linear:
    weight = torch.cat([layer.weight for layer in layers])  # type: ignore[misc]
    bias = _joined_bias(layers)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        joined.bias = nn.Parameter(bias, requires_grad=False)
    return joined


def _joined_bias(layers: list[nn.Module]) -> Tensor | None:
    biases: list[Tensor | None] = [layer.bias for layer in layers]  # type: ignore[misc]
    present = next((bias for bias in biases if bias is not None), None)
    if present is None:
        return None
    sizes: list[int] = [layer.out_features for layer in layers]  # type: ignore[misc]
    zeros = [present.new_zeros(size) for size in sizes]
    return torch.cat([z if b is None else b for z, b in zip(zeros, biases, strict=True)])


class SharedOutput:
    """The outputs of a group for the input that the model is at; each part is taken once."""

    def __init__(self, layer: nn.Module, group: LayerGroup) -> None:
        self.layer = layer
        self._sizes = group.out_features
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = [None] * len(group.names)

    def take(self, index: int, x: Tensor) -> Tensor:
        """One layer's output. Another input than its siblings' costs a product of its own."""
        part = self._parts[index] if x is self._input else None
        if part is None:
            self._input = x
            self._parts = list(self.layer(x).split(self._sizes, -1))
            part = self._parts[index]
            assert part is not None
        self._parts[index] = None
        if not any(p is not None for p in self._parts):
            self._input = None
        return part


class Sibling(nn.Module):
    """Stands in the model for one layer of a group."""

    def __init__(self, shared: SharedOutput, index: int) -> None:
        super().__init__()
        self.joined = shared.layer  # a module of the model, found by whoever walks it
        self._shared = shared
        self._index = index

    @property
    def weight(self) -> Tensor:
        """The joined weight, for model code that looks at its type or device."""
        return self.joined.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], a view of the joined output."""
        return self._shared.take(self._index, x)


@dataclass(frozen=True, slots=True)
class Member:
    """One layer of the base, without adapters, for whoever needs its product alone."""

    joined: nn.Module
    columns: slice

    def product(self, x: Tensor) -> Tensor:
        """W x without the bias: [n, in_features] -> [n, out_features]; safe from any thread."""
        if isinstance(self.joined, FOUR_BIT):
            return self.joined.product(x)[:, self.columns]
        bias: Tensor | None = self.joined.bias  # type: ignore[assignment]
        y: Tensor = self.joined(x)
        return (y if bias is None else y - bias)[:, self.columns]


def install(
    model: nn.Module, groups: list[LayerGroup], adapt: Callable[[nn.Module, LayerGroup], nn.Module]
) -> dict[str, Member]:
    """Join each group in the model, wrapped by `adapt`; the base's own layers by name."""
    members = {}
    for group in groups:
        joined = join([model.get_submodule(name) for name in group.names])
        members.update(
            {n: Member(joined, c) for n, c in zip(group.names, group.columns, strict=True)}
        )
        adapted = adapt(joined, group)
        if len(group.names) == 1:
            model.set_submodule(group.names[0], adapted)
            continue
        shared = SharedOutput(adapted, group)
        for index, name in enumerate(group.names):
            model.set_submodule(name, Sibling(shared, index))
    return members
