"""16-bit copies of weights in the layout that the CPU's matrix kernel reads, made once.

torch rearranges a bf16 weight anew in every product; for few rows that costs more than the product.
The results are the same bits. Copies take memory, so they are made only where they were asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

Product = Callable[[Tensor], Tensor]
NUM_ROWS_HINT = 256  # the kernel's layout is chosen for about this many rows


class WideWeight:
    """A weight [out_features, in_features] in 16 bits."""

    def __init__(self, weight: Tensor) -> None:
        self.nbytes = weight.nbytes
        self._out_features = len(weight)
        self._arranged = _can_be_arranged(weight)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), NUM_ROWS_HINT)
            if self._arranged
            else weight
        )

    def product(self, x: Tensor) -> Tensor:
        """[n, in_features] -> [n, out_features]."""
        if not self._arranged:
            return F.linear(x, self._weight)
        if not len(x):  # a step may want no logits at all
            return x.new_empty(0, self._out_features)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return y


@dataclass(slots=True)
class StepRows:
    """How the rows of the step at hand divide: those of generated tokens come first."""

    num_decodes: int = 0


class WidePrompts:
    """A layer's product, of prompt tokens by a copy of its weight.

    They always take the copy and generated tokens never, so that a token's numbers do not depend on
    who shares its step.
    """

    def __init__(self, product: Product, in_features: int, rows: StepRows) -> None:
        # The layer applied to the unit vectors: its weights, exact but for the rounding to bf16.
        self._copy = WideWeight(product(torch.eye(in_features, dtype=torch.bfloat16)).T)
        self._product = product
        self._rows = rows
        self.nbytes = self._copy.nbytes

    def product(self, x: Tensor) -> Tensor:
        """[n, in_features] -> [n, out_features]."""
        border = self._rows.num_decodes
        if border == 0:
            return self._copy.product(x)
        if border == len(x):
            return self._product(x)
        return torch.cat((self._product(x[:border]), self._copy.product(x[border:])))


def _can_be_arranged(weight: Tensor) -> bool:
    """Not where the CPU lacks AVX512 altogether: there the kernel refuses 16 bits."""
    return (
        weight.dtype is torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class WideLinear(nn.Module):
    """A layer without bias that computes with a copy of its weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight
        self.copied = WideWeight(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y = self.copied.product(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], len(self.weight))


def widen_output_layer(model: PreTrainedModel) -> int:
    """Let the output layer compute with a copy; its bytes, 0 where it has a bias."""
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear or layer.bias is not None:
        return 0
    wide = WideLinear(layer)
    model.set_output_embeddings(wide)
    return wide.copied.nbytes
