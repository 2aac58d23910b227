"""The updates of a batch's adapters as lora.c has them."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finlora.native.library import DTYPES, LANES, address, load

MAX_RANKS = 1024
MAX_FEATURES = 32768


def fits(in_features: int, out_features: Sequence[int], max_ranks: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes slots of so many ranks for layers that read the same input."""
    sizes = (in_features, *out_features)
    return (
        dtype in DTYPES
        and max_ranks <= MAX_RANKS
        and all(size % LANES == 0 and size <= MAX_FEATURES for size in sizes)
    )


class SlotsRecord(ctypes.Structure):
    """Where slots lie, as the kernels take them (kernels.h)."""

    _fields_ = (
        ("loras", ctypes.c_void_p),
        ("halves", ctypes.c_void_p),
        ("column_ends", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
    )


class SlotUpdates:
    """Slots for adapters of layers that read the same input; borrows the adapters' tensors."""

    def __init__(
        self, num_slots: int, in_features: int, out_features: Sequence[int], dtype: torch.dtype
    ) -> None:
        """Empty slots for rows of a type. Raises KernelsUnusableError."""
        num_layers = len(out_features)
        self._borrowed: list[Sequence[tuple[Tensor, Tensor] | None]] = [()] * num_slots
        self._loras = np.zeros((num_slots, num_layers, 3), np.int64)  # two addresses and a rank
        self._halves = np.zeros(num_slots, np.int64)
        self._column_ends = np.cumsum(out_features, dtype=np.int64)
        self._library = load()
        self.described = SlotsRecord(
            self._loras.ctypes.data,
            self._halves.ctypes.data,
            self._column_ends.ctypes.data,
            in_features,
            sum(out_features),
            num_layers,
        )
        self._dtype = dtype
        self._is_half = ctypes.c_int(dtype is torch.bfloat16)

    def put(self, slot: int, layers: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        """Let a slot be A [r, in_features] and B [r, out_features] of each layer, None without one.

        All are contiguous and of one type: that of the rows, or bfloat16.
        """
        self._borrowed[slot] = layers
        self._loras[slot] = [
            (0, 0, 0) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr(), len(pair[0]))
            for pair in layers
        ]
        self._halves[slot] = any(
            tensor.dtype is torch.bfloat16 for pair in layers if pair for tensor in pair
        )

    def add(self, x: Tensor, y: Tensor, segments: Tensor) -> None:
        """y [T, out_features] += (x A^T) B, in place, summed in float32; x is [T, in_features].

        `segments` [n, 3], int64: slot, first row and number of rows of each adapter.
        """
        assert x.dtype is y.dtype is self._dtype
        assert y.stride(1) == 1
        x = x.contiguous()
        self._library.finlora_lora(
            ctypes.byref(self.described),
            address(x),
            ctypes.c_int64(x.stride(0)),
            address(y),
            ctypes.c_int64(y.stride(0)),
            address(segments),
            ctypes.c_int64(segments.shape[0]),
            self._is_half,
            ctypes.c_int(torch.get_num_threads()),
        )
