"""Four-bit weights in the panels that four_bit.c reads, and what can be computed with them."""

import ctypes

import torch
from torch import Tensor

from finlora.native.library import address, load

PANEL = 16  # output features of a panel
# Of low rank: `low` [ranks, n] and `columns` [ranks, width], which low^T columns adds.
Update = tuple[Tensor, Tensor] | None


class WeightRecord(ctypes.Structure):
    """Where a weight lies, as the kernels take it (kernels.h)."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("code_book", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
    )


class PanelWeight:
    """A weight [out_features, in_features] of four-bit codes with a scale for every block of a row.

    out_features is a multiple of 16 and in_features one of the block size.
    """

    def __init__(self, codes: Tensor, scales: Tensor, code_book: Tensor) -> None:
        """Bytes [panels, in_features, 8] and float32 [panels, blocks, 16], as `arrange` makes them.

        `code_book` is what the 16 codes mean, float32. Raises KernelsUnusableError.
        """
        self.codes, self.scales, self.code_book = codes, scales, code_book
        self.num_panels, self.in_features = codes.shape[0], codes.shape[1]
        self.block_size = self.in_features // scales.shape[1]
        self._library = load()
        self.described = self._panels(slice(0, self.num_panels))

    @classmethod
    def arrange(cls, codes: Tensor, scales: Tensor, code_book: Tensor) -> "PanelWeight":
        """From bytes [out_features, in_features / 2], the first code in the high half of each.

        Scales are [out_features, blocks of a row].
        """
        out_features, half = codes.shape
        single = torch.stack((codes >> 4, codes & 15), -1).view(-1, 2, PANEL // 2, 2 * half)
        low, high = single.transpose(2, 3).unbind(1)  # [panels, in_features, 8]
        arranged = scales.view(out_features // PANEL, PANEL, -1).transpose(1, 2).contiguous()
        # A copy: it may stand in a mapped file, all of which these 16 numbers would keep.
        book = code_book.to(torch.float32, copy=True)
        return cls((low | high << 4).contiguous(), arranged.float(), book)

    @classmethod
    def joined(cls, weights: "list[PanelWeight]") -> "PanelWeight":
        """One weight with the output features of all in a row."""
        codes = torch.cat([weight.codes for weight in weights])
        scales = torch.cat([weight.scales for weight in weights])
        return cls(codes, scales, weights[0].code_book)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.num_panels * PANEL

    def product(self, x: Tensor, update: Update = None) -> Tensor:
        """x W^T in float32: [n, in_features] -> [n, out_features]; safe from any thread.

        With an `update`, [ranks, n] and [ranks, out_features], low^T columns is added.
        """
        x = _rows(x)
        num_rows = x.shape[0]
        out = x.new_empty(num_rows, self.out_features)
        self._library.finlora_four_bit_product(
            ctypes.byref(self.described),
            address(x),
            ctypes.c_int64(num_rows),
            *_low_rank(update),
            address(out),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out

    def product_back(self, y: Tensor, update: Update = None, onto: Tensor | None = None) -> Tensor:
        """y W: [n, out_features] -> [n, in_features], added in place where there is `onto`.

        An `update` is [ranks, n] and [ranks, in_features].
        """
        y = _rows(y)
        num_rows = y.shape[0]
        out = y.new_empty(num_rows, self.in_features) if onto is None else onto
        self._library.finlora_four_bit_product_back(
            ctypes.byref(self.described),
            address(y),
            ctypes.c_int64(num_rows),
            *_low_rank(update),
            address(out),
            ctypes.c_int(onto is not None),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out

    def transposed(self, panels: slice) -> Tensor:
        """W^T of some panels: [in_features, 16 for each panel]."""
        out = self.scales.new_empty(self.in_features, PANEL * (panels.stop - panels.start))
        self._library.finlora_four_bit_weights(
            ctypes.byref(self._panels(panels)),
            address(out),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out

    def _panels(self, panels: slice) -> WeightRecord:
        return WeightRecord(
            address(self.codes[panels]),
            address(self.scales[panels]),
            address(self.code_book),
            self.in_features,
            PANEL * (panels.stop - panels.start),
            self.block_size,
        )


def _rows(x: Tensor) -> Tensor:
    assert x.dtype is torch.float32
    return x.contiguous()


def _low_rank(update: Update) -> tuple[object, ...]:
    if update is None:
        return None, None, ctypes.c_int64(0)
    low, columns = update
    assert low.dtype is columns.dtype is torch.float32
    assert low.is_contiguous()
    assert columns.is_contiguous()
    return address(low), address(columns), ctypes.c_int64(columns.shape[0])
