"""Weights in the panels that the kernels of AVX512_BF16 read, whose dot products take two input
features at once; rows are bfloat16. See four_bit_avx512.c and half_avx512.c."""

import ctypes

import torch
from torch import Tensor

from finlora.native.four_bit import WeightRecord
from finlora.native.half import panels_product
from finlora.native.library import address, load

PANEL = 32  # output features of a panel
MAX_BLOCK_SIZE = 256  # weights that share a scale
VECTOR = 16  # output features whose pairs fill a register
FEATURES = 4  # input features whose codes lie together


class PairedWeight:
    """A weight [out_features, in_features] of four-bit codes with a scale for every block of a row.

    out_features is a multiple of 32 and in_features one of the block size. Scales and code book are
    rounded to bfloat16.
    """

    def __init__(self, codes: Tensor, scales: Tensor, code_book: Tensor) -> None:
        """Bytes [panels, in_features / 4, 64] and bfloat16 [panels, blocks, 32], as of `arrange`.

        `code_book` is what the 16 codes mean, float32. Raises KernelsUnusableError.
        """
        self.codes, self.scales, self.code_book = codes, scales, code_book
        self.num_panels, self.in_features = codes.shape[0], codes.shape[1] * FEATURES
        self._library = load()
        self.described = WeightRecord(
            address(codes),
            address(scales),
            address(code_book),
            self.in_features,
            self.out_features,
            self.in_features // scales.shape[1],
        )

    @classmethod
    def arrange(cls, codes: Tensor, scales: Tensor, code_book: Tensor) -> "PairedWeight":
        """From bytes [out_features, in_features / 2], the first code in the high half of each.

        Scales are [out_features, blocks of a row].
        """
        num_panels, num_fours = len(codes) // PANEL, codes.shape[1] * 2 // FEATURES
        single = torch.stack((codes >> 4, codes & 15), -1)
        # [panels, halves of a panel, outputs, fours, pairs of a four, members of a pair]
        apart = single.view(num_panels, 2, VECTOR, num_fours, 2, 2)
        low, high = apart.unbind(1)
        words = (low | high << 4).permute(0, 2, 1, 4, 3).reshape(num_panels, num_fours, 2 * PANEL)
        arranged = scales.view(num_panels, PANEL, -1).transpose(1, 2).to(torch.bfloat16)
        # A copy: it may stand in a mapped file, all of which these 16 numbers would keep.
        book = code_book.to(torch.float32, copy=True)
        return cls(words, arranged.contiguous(), book)

    @classmethod
    def joined(cls, weights: "list[PairedWeight]") -> "PairedWeight":
        """One weight with the output features of all in a row."""
        codes = torch.cat([weight.codes for weight in weights])
        scales = torch.cat([weight.scales for weight in weights])
        return cls(codes, scales, weights[0].code_book)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.num_panels * PANEL

    def product(self, x: Tensor) -> Tensor:
        """x W^T: [n, in_features] -> [n, out_features]; safe from any thread."""
        assert x.dtype is torch.bfloat16
        x = x.contiguous()
        num_rows = x.shape[0]
        out = x.new_empty(num_rows, self.out_features)
        self._library.finlora_four_bit_half_product(
            ctypes.byref(self.described),
            address(x),
            ctypes.c_int64(num_rows),
            address(out),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out


class PairedPanels:
    """A weight [out_features, in_features] in bfloat16.

    out_features is a multiple of 32, in_features one of 2.
    """

    def __init__(self, panels: Tensor) -> None:
        """`panels` are [panels, in_features / 2, 32, 2], as `arrange` makes them.

        Raises KernelsUnusableError.
        """
        self.panels = panels
        self.num_panels, self.in_features = panels.shape[0], 2 * panels.shape[1]
        self._library = load()

    @classmethod
    def arrange(cls, weight: Tensor) -> "PairedPanels":
        """From [out_features, in_features] in bfloat16."""
        assert weight.dtype is torch.bfloat16
        out_features, in_features = weight.shape
        shape = out_features // PANEL, PANEL, in_features // 2, 2
        return cls(weight.detach().view(shape).transpose(1, 2).contiguous())

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.num_panels * PANEL

    @property
    def nbytes(self) -> int:
        """Memory that the weight takes."""
        return self.panels.nbytes

    def product(self, x: Tensor) -> Tensor:
        """x W^T in float32: [n, in_features] -> [n, out_features]; safe from any thread."""
        assert x.dtype is torch.bfloat16
        kernel, shape = self._library.finlora_half_dots, (len(x), self.out_features)
        return panels_product(kernel, x, self.panels, self.in_features, shape)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight: [...] -> [..., in_features]."""
        return self.panels[ids // PANEL, :, ids % PANEL].flatten(-2)
