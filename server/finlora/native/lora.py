"""The updates of a batch's adapters as lora.c has them."""

import ctypes
from collections.abc import Sequence

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
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("max_ranks", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
        ("rank_ends", ctypes.c_void_p),
        ("column_ends", ctypes.c_void_p),
    )


class SlotUpdates:
    """Slots for adapters of layers that read the same input; borrows their tensors."""

    def __init__(self, a: Tensor, b: Tensor, out_features: Sequence[int]) -> None:
        """[slots, max_ranks, in_features] and [slots, max_ranks, sum of out_features]."""
        num_slots, max_ranks, in_features = a.shape
        self._tensors = a, b
        self._rank_ends = torch.zeros(num_slots, len(out_features), dtype=torch.int64)
        self._column_ends = torch.tensor(out_features).cumsum(0)
        self._library = load()
        self.described = SlotsRecord(
            address(a),
            address(b),
            max_ranks,
            in_features,
            b.shape[2],
            len(out_features),
            address(self._rank_ends),
            address(self._column_ends),
        )
        self._dtype = a.dtype
        self._is_half = ctypes.c_int(a.dtype is torch.bfloat16)

    def set_ranks(self, slot: int, ends: Sequence[int]) -> None:
        """Where the ranks of each layer end in the slot."""
        self._rank_ends[slot] = torch.tensor(ends)

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
