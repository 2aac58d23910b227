"""The updates of a batch's adapters as lora.c has them."""

import ctypes
from collections.abc import Sequence
from typing import Protocol

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


class Layer(Protocol):
    """One layer of one adapter; contiguous."""

    @property
    def a(self) -> Tensor:
        """[r, in_features]."""
        ...

    @property
    def b(self) -> Tensor:
        """[r, out_features], gamma folded in."""
        ...

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's scale of each output."""
        ...


class SlotUpdates:
    """Slots for adapters of layers that read the same input; borrows the adapters' tensors."""

    def __init__(
        self, num_slots: int, in_features: int, out_features: Sequence[int], dtype: torch.dtype
    ) -> None:
        """Empty slots for rows of a type. Raises KernelsUnusableError."""
        num_layers = len(out_features)
        self._borrowed: list[Sequence[Layer | None]] = [()] * num_slots
        # Addresses of A and B, the rank, the magnitude's address.
        self._loras = np.zeros((num_slots, num_layers, 4), np.int64)
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

    def put(self, slot: int, layers: Sequence[Layer | None]) -> None:
        """Let a slot be an adapter's layers; None: it leaves that layer alone.

        A and B are all of one type, that of the rows or bfloat16; magnitudes are of the rows' type.
        """
        self._borrowed[slot] = layers
        self._loras[slot] = [(0, 0, 0, 0) if layer is None else _row(layer) for layer in layers]
        self._halves[slot] = any(layer and layer.a.dtype is torch.bfloat16 for layer in layers)

    def add(self, x: Tensor, y: Tensor, bias: Tensor | None, segments: Tensor) -> None:
        """y [T, out_features] += (x A^T) B, in place, summed in float32; x is [T, in_features].

        DoRA scales the sum, but for the bias that y holds. `segments` [n, 3], int64: slot, first
        row and number of rows of each adapter.
        """
        assert x.dtype is y.dtype is self._dtype
        assert y.stride(1) == 1
        x = x.contiguous()
        bias = None if bias is None else bias.to(self._dtype).contiguous()
        self._library.finlora_lora(
            ctypes.byref(self.described),
            address(x),
            ctypes.c_int64(x.stride(0)),
            address(y),
            ctypes.c_int64(y.stride(0)),
            None if bias is None else address(bias),
            address(segments),
            ctypes.c_int64(segments.shape[0]),
            self._is_half,
            ctypes.c_int(torch.get_num_threads()),
        )


def _row(layer: Layer) -> tuple[int, int, int, int]:
    magnitude = 0 if layer.magnitude is None else layer.magnitude.data_ptr()
    return layer.a.data_ptr(), layer.b.data_ptr(), len(layer.a), magnitude
