"""QERA (arXiv 2410.06040): B A starts as the best correction of its rank of what quantisation took.

Needs no 16-bit model in memory: its tensors are read one at a time.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finlora.bases.tensors import TensorEntry, read_weight
from finlora.model import LoadedBase
from finlora.training.batches import Example
from finlora.training.lora_layer import TrainableLoRA, plain_weight
from finlora.training.restoration.closed_form import check_rank, corrections

MAX_ROWS = 64


@torch.no_grad()
def start_from_error(
    base: LoadedBase,
    layers: Mapping[str, TrainableLoRA],
    entries: Mapping[str, TensorEntry],
    examples: Sequence[Example],
) -> None:
    """Set every A and B from its layer's error and from what the first rows give the layer.

    `entries` are the base's 16-bit tensors. Raises BaseModelError when one is missing,
    ConfigError for a rank above a layer's size.
    """

    def error(name: str) -> Tensor:
        return read_weight(entries, name).to(base.device) - plain_weight(layers[name].base)

    batches = [torch.tensor([row.context + row.target]) for row in examples[:MAX_ROWS]]
    shapes = {name: base.spec.linear_layers[name] for name in layers}
    rank = next(iter(layers.values())).settings.rank
    check_rank(shapes, rank)
    for name, factors in corrections(base, shapes, batches, error, rank):
        layers[name].start_at(factors.a, factors.b)
