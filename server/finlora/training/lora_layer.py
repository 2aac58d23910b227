"""A trainable LoRA update around a frozen layer: float32 masters, computed in the base's type."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn

from finlora.bases.dequantization import served_weight
from finlora.bases.spec import LinearShape
from finlora.model import LoadedBase
from finlora.training.config import Init
from finlora.training.four_bit_layer import FourBitLayer
from finlora.training.frozen import Frozen, WideWeight
from finlora.training.initialization import initial_matrices
from finlora.training.lora_product import Operand, lora_product, lora_products
from finlora.training.recomputed import Recipe, compute


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """What every adapted layer of one run has in common."""

    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    dropout: float = 0.0
    init: Init = "default"

    @property
    def scaling(self) -> float:
        """alpha / r; rsLoRA alpha / sqrt(r) (arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class TrainableLoRA(nn.Module):
    """y = base(x) + scaling * B A x; DoRA (arXiv 2402.09353) rescales the rows of the sum."""

    magnitude: nn.Parameter | None

    def __init__(
        self,
        base: nn.Module,
        shape: LinearShape,
        settings: LoRASettings,
        compute_dtype: torch.dtype,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.base = base
        self._compute_dtype = compute_dtype  # a layer that stores bytes need not know it
        self.settings = settings
        device = next(base.parameters()).device
        a, b = initial_matrices(
            settings.init, settings.rank, shape.in_features, shape.out_features, generator
        )
        self.a = nn.Parameter(a.to(device))
        self.b = nn.Parameter(b.to(device))
        self.magnitude = None
        if settings.use_dora:
            self._squares = plain_weight(base).square().sum(1)
            self.magnitude = nn.Parameter(self._squares.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        updated = self._updated(x)
        if self.magnitude is None:
            return updated
        gain = (self.magnitude / self.row_norms()).to(x.dtype)
        bias = getattr(self.base, "bias", None)
        return gain * updated if bias is None else gain * (updated - bias) + bias

    def _updated(self, x: Tensor) -> Tensor:
        if (operand := self.operand()) is not None:
            return lora_product(x, operand, self.settings.scaling)
        y: Tensor = self.base(x)
        dropped = F.dropout(x, self.settings.dropout, self.training)
        hidden = F.linear(dropped, self.a.to(x.dtype)).flatten(0, -2)
        scaled = (self.b * self.settings.scaling).to(x.dtype)
        return torch.addmm(y.flatten(0, -2), hidden, scaled.T).view_as(y)

    @torch.no_grad()
    def start_at(self, a: Tensor, b: Tensor) -> None:
        """Let the update be b a: [out_features, rank] [rank, in_features], scaling divided out."""
        root = math.sqrt(self.settings.scaling)
        self.a.copy_(a / root)
        self.b.copy_(b / root)
        if self.magnitude is not None:
            self.magnitude.copy_(self.row_norms())

    def operand(self) -> Operand | None:
        """For a product with one backward pass; None where the update is none of that kind."""
        dropout = self.settings.dropout if self.training else 0.0
        frozen = _frozen(self.base)
        return None if frozen is None or dropout else Operand(frozen, self.a, self.b)

    def tensors(self) -> dict[str, Tensor]:
        """PEFT's names for what was learned."""
        named: dict[str, Tensor] = {"lora_A.weight": self.a, "lora_B.weight": self.b}
        if self.magnitude is not None:
            named["lora_magnitude_vector"] = self.magnitude
        return named

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """||W + s B A|| of every row, without the weight: W A^T is the base layer applied to A."""
        b = self.b * self.settings.scaling
        applied: Tensor = self.base(self.a.to(self._compute_dtype)).float()
        bias = getattr(self.base, "bias", None)
        if bias is not None:
            applied = applied - bias.float()
        cross = 2 * (b * applied.T).sum(1)
        square = ((b @ (self.a @ self.a.T)) * b).sum(1)
        return (self._squares + cross + square).clamp_min(1e-12).sqrt()


def project(
    recipe: Recipe, inputs: Sequence[Tensor], layers: Sequence[nn.Module]
) -> tuple[Tensor, ...]:
    """Outputs of layers, adapted or not, that all read what the recipe makes of the inputs."""
    operands = [operand for layer in layers if (operand := _operand(layer)) is not None]
    if len(operands) == len(layers):
        return lora_products(recipe, inputs, operands, _scaling(layers))
    x = compute(recipe, *inputs)
    return tuple(layer(x) for layer in layers)


def _operand(layer: nn.Module) -> Operand | None:
    if isinstance(layer, TrainableLoRA):
        return layer.operand() if layer.magnitude is None else None
    frozen = _frozen(layer)
    if frozen is None:
        return None
    own: Any = layer
    device = own.weight.device
    a = torch.empty(0, own.in_features, device=device)
    return Operand(frozen, a, torch.empty(own.out_features, 0, device=device))


def _frozen(layer: nn.Module) -> Frozen | None:
    """Its weight, where a product can be computed with it here."""
    if isinstance(layer, FourBitLayer):
        return layer.frozen
    return WideWeight(layer.weight, layer.bias) if type(layer) is nn.Linear else None


def _scaling(layers: Sequence[nn.Module]) -> float:
    """Of the run: all layers have the same."""
    adapted = (layer for layer in layers if isinstance(layer, TrainableLoRA))
    return next((layer.settings.scaling for layer in adapted), 1.0)


def attach(
    base: LoadedBase, names: Iterable[str], settings: LoRASettings, *, seed: int
) -> dict[str, TrainableLoRA]:
    """Put an update around the named layers; the start depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in names:
        layers[name] = TrainableLoRA(
            base.model.get_submodule(name),
            base.spec.linear_layers[name],
            settings,
            base.compute_dtype,
            generator,
        )
        base.model.set_submodule(name, layers[name])
    return layers


def plain_weight(layer: Any) -> Tensor:
    """[out_features, in_features] in float32, whatever the layer stores."""
    if isinstance(layer, Linear4bit):
        return served_weight(layer, packed=False)
    if isinstance(layer, FourBitLayer):
        return layer.wide()
    stored: Any = layer.weight
    weight: Tensor = stored.data.float()
    if not isinstance(layer, Linear8bitLt):
        return weight
    scales: Any = layer.state.SCB if stored.SCB is None else stored.SCB
    rows: Tensor = scales.float() / 127
    return weight * rows[:, None]
