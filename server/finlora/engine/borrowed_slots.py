"""Slots that copy nothing: our own kernel reads adapters where they lie in RAM."""

from collections.abc import Sequence

import torch
from torch import Tensor

from finlora.engine.lora_batch import LoRABatch
from finlora.engine.lora_weights import LoRAWeights
from finlora.engine.siblings import LayerGroup
from finlora.native import library
from finlora.native import lora as native_lora
from finlora.native.lora import SlotUpdates


def can_borrow(group: LayerGroup, max_rank: int, dtype: torch.dtype, device: str) -> bool:
    """Whether the kernel takes adapters of such layers here."""
    return (
        torch.device(device).type == "cpu"
        and native_lora.fits(
            group.in_features, group.out_features, len(group.names) * max_rank, dtype
        )
        and library.obstacle() is None
    )


class BorrowedSlots:
    """The slots of one group of layers, where it `can_borrow`."""

    def __init__(self, group: LayerGroup, max_loras: int, dtype: torch.dtype) -> None:
        self.updates = SlotUpdates(max_loras, group.in_features, group.out_features, dtype)

    def write(self, slot: int, layers: Sequence[LoRAWeights | None]) -> None:
        """Let a slot be one adapter's layers; None: the adapter leaves that layer alone."""
        self.updates.put(slot, layers)

    @property
    def num_bytes(self) -> int:
        """Bytes that slots hold of their own: none."""
        return 0

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None, batch: LoRABatch) -> None:
        """Add the adapters' part to y [T, out_features] in place; x is [T, in_features]."""
        self.updates.add(x, y, bias, batch.described)
