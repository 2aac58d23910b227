"""The output layer on a CPU: a few rows by the weight of a whole vocabulary.

Most models come in bfloat16. Where our own kernels can be used, such a weight is kept so: it is
multiplied as it is with rows in bfloat16, for which the library would rearrange it in every step,
and widened in the product with rows in float32, which takes half of the memory and of what few rows
wait for. An input embedding that shares the weight shares the panels. Other weights stay in
float32; of them the library computes W x^T up to three times as fast as x W^T (2 to 64 rows, 49,152
outputs).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from finlora.native import library, paired
from finlora.native.four_bit import PANEL
from finlora.native.half import HalfPanels, is_exact
from finlora.native.paired import PairedPanels

MAX_ROWS = 64  # beyond, a result whose columns are neighbours in memory costs more than it saves


Panels = HalfPanels | PairedPanels


class TransposedLinear(nn.Module):
    """A layer without bias that computes few rows as a transposed product."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > MAX_ROWS:
            return F.linear(x, self.weight)
        return (self.weight @ rows.T).T.reshape(*x.shape[:-1], len(self.weight))


class HalfLinear(nn.Module):
    """A layer without bias whose weight is kept in bfloat16; of the panels' rows, float32 out."""

    def __init__(self, panels: Panels) -> None:
        super().__init__()
        self.panels = panels
        self.weight = _stand_in()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        out = self.panels.product(x.reshape(-1, self.panels.in_features))
        return out.view(*x.shape[:-1], self.panels.out_features)


class HalfEmbedding(nn.Module):
    """An embedding kept in bfloat16 that gives rows as the panels take them."""

    def __init__(self, panels: Panels) -> None:
        super().__init__()
        self.panels = panels
        self.weight = _stand_in()

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., in_features]."""
        return self.panels.rows(ids)


def replace_output_layer(model: PreTrainedModel) -> int:
    """Put a faster layer in place of the output layer, if one fits; bytes that it saves.

    The embedding that shares a weight put in panels is replaced too: the weight is freed.
    """
    layer: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if type(layer) is not nn.Linear or layer.bias is not None or layer.weight.device.type != "cpu":
        return 0
    is_tied = embedding.weight.data_ptr() == layer.weight.data_ptr()
    if not _fits_panels(layer.weight) or (is_tied and not _is_plain(embedding)):
        if layer.weight.dtype is torch.float32:
            model.set_output_embeddings(TransposedLinear(layer))
        return 0
    panels = _arranged(layer.weight)
    num_bytes: int = layer.weight.nbytes - panels.nbytes
    model.set_output_embeddings(HalfLinear(panels))
    if is_tied:
        model.set_input_embeddings(HalfEmbedding(panels))
    elif _is_plain(embedding) and fits_half(embedding.weight):
        panels = HalfPanels.arrange(embedding.weight)
        num_bytes += embedding.weight.nbytes - panels.nbytes
        model.set_input_embeddings(HalfEmbedding(panels))
    _own_vectors(model)
    return num_bytes


def output_layer_bytes(model: PreTrainedModel) -> int:
    """What a step reads of the output layer's weight."""
    layer: Any = model.get_output_embeddings()
    weight: Tensor = layer.panels.panels if isinstance(layer, HalfLinear) else layer.weight
    return weight.nbytes


def fits_half(weight: Tensor) -> bool:
    """Whether a float32 weight on a CPU can be kept in bfloat16 without changing a number."""
    return (
        weight.dtype is torch.float32
        and len(weight) % PANEL == 0
        and library.obstacle() is None
        and is_exact(weight)
    )


def _fits_panels(weight: Tensor) -> bool:
    if weight.dtype is torch.bfloat16:
        fits = len(weight) % paired.PANEL == 0 and weight.shape[1] % 2 == 0
        return fits and library.avx512_obstacle() is None
    return fits_half(weight)


def _arranged(weight: Tensor) -> Panels:
    return (PairedPanels if weight.dtype is torch.bfloat16 else HalfPanels).arrange(weight)


def _is_plain(embedding: nn.Module) -> bool:
    """Others compute something of their own: Gemma's scales what it looked up."""
    return type(embedding) is nn.Embedding


def _own_vectors(model: nn.Module) -> None:
    """Copy norms and biases: in a mapped file they would keep all of it, the freed weight too."""
    for vector in (*model.parameters(), *model.buffers()):
        if vector.dim() == 1:
            vector.data = vector.data.clone()


def _stand_in() -> Tensor:
    """For model code that looks at a weight's type or device."""
    return torch.empty(0)
