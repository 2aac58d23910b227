"""What four and eight bits take from each layer of a base, and what their scales cost.

Reads one 16-bit tensor at a time: a base that does not fit into memory can be inspected too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from torch import Tensor

from finlora.bases.quantized import BLOCK_SIZE
from finlora.bases.spec import LinearShape
from finlora.bases.tensors import read_weight, tensor_entries

FOUR_BITS = ("nf4", "fp4")


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """Of one linear layer: ||W - dequantised W|| / ||W|| for each storage."""

    name: str
    shape: LinearShape
    relative: dict[str, float]  # nf4, fp4, int8


@dataclass(frozen=True, slots=True)
class ScaleCost:
    """Bits a weight that the scales of the blocks take, from the tensors that hold them."""

    plain: float  # one float32 a block
    double: float  # one byte a block, and a float32 for every 256 of them: on disk and on CUDA
    packed: float  # one bfloat16 a block: the packed CPU format


def layer_errors(
    folder: Path, layers: Mapping[str, LinearShape]
) -> Iterator[tuple[LayerErrors, ScaleCost]]:
    """For each linear layer of a base folder. Raises BaseModelError."""
    entries = tensor_entries(folder)
    for name, shape in layers.items():
        weight = read_weight(entries, name)
        yield LayerErrors(name, shape, _errors(weight)), _scale_cost(weight)


def mean_errors(layers: list[LayerErrors]) -> dict[str, float]:
    """Root mean square over the layers, each weighing by its number of weights."""
    sizes = [layer.shape.in_features * layer.shape.out_features for layer in layers]
    total = sum(sizes)
    return {
        kind: (
            sum(size * layer.relative[kind] ** 2 for size, layer in zip(sizes, layers, strict=True))
            / total
        )
        ** 0.5
        for kind in layers[0].relative
    }


def _errors(weight: Tensor) -> dict[str, float]:
    found = {kind: _relative(weight, _four_bits(weight, kind)) for kind in FOUR_BITS}
    return found | {"int8": _relative(weight, _eight_bits(weight))}


def _relative(weight: Tensor, stored: Tensor) -> float:
    return float((weight - stored).norm() / weight.norm())


def _four_bits(weight: Tensor, kind: str) -> Tensor:
    codes, state = _quantized(weight, kind, double=True)
    plain: Tensor = dequantize_4bit(codes, state)
    return plain


def _quantized(weight: Tensor, kind: str, *, double: bool) -> tuple[Tensor, QuantState]:
    codes, state = quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=double, quant_type=kind
    )
    return codes, state


def _eight_bits(weight: Tensor) -> Tensor:
    """One scale a row, as LLM.int8() has it (arXiv 2208.07339), without split-off columns."""
    scales = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (weight / scales).round() * scales


def _scale_cost(weight: Tensor) -> ScaleCost:
    _, plain = _quantized(weight, "nf4", double=False)
    _, double = _quantized(weight, "nf4", double=True)
    bits = 8 / weight.numel()
    return ScaleCost(
        plain=plain.absmax.nbytes * bits,
        double=(double.absmax.nbytes + double.state2.absmax.nbytes) * bits,
        packed=plain.absmax.to(torch.bfloat16).nbytes * bits,
    )
