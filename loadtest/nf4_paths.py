"""Times a forward pass through a model's NF4 layers by each way that this CPU has.

With AVX512_BF16 these are our own kernel, bitsandbytes' packed one, and bfloat16 weights, which
take four times the memory; on other CPUs our own kernel, tiles, and float32 weights, eight times
the memory. Prints a Markdown table: milliseconds for all linear layers of the default base (30
blocks, siblings joined), and the rate they amount to.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor

from finlora.engine.packed_linear import PackedLinear
from finlora.engine.paired_linear import PairedLinear
from finlora.engine.panel_linear import PanelLinear
from finlora.engine.unpacked_linear import UnpackedLinear
from finlora.native import library
from finlora.native.four_bit import PanelWeight

BLOCK_SIZE = 64
# (out_features, in_features) of a block of the default base.
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
NUM_BLOCKS = 30
NUM_ROWS = (1, 4, 16, 32, 64, 128, 512, 2048)
REPEATS = 5

Product = Callable[[Tensor], Tensor]
Products = list[tuple[int, Product]]  # and the width of what each takes


class Layers:
    """All layers of a model in one form; more than the caches hold."""

    def __init__(self, products: Products, dtype: torch.dtype) -> None:
        self._products = products
        self._dtype = dtype

    @torch.inference_mode()
    def milliseconds(self, num_rows: int) -> float:
        """Median time of every layer once with so many rows."""
        widths = {width for width, _ in self._products}
        inputs = {width: torch.randn(num_rows, width).to(self._dtype) for width in widths}
        times = []
        for _ in range(REPEATS + 1):
            begin = time.perf_counter()
            for width, product in self._products:
                product(inputs[width])
            times.append(time.perf_counter() - begin)
        return median(times[1:]) * 1e3


def ways() -> dict[str, Layers]:
    """Every way that is to be compared here, with random weights."""
    return float32_ways() if library.avx512_obstacle() else bfloat16_ways()


def bfloat16_ways() -> dict[str, Layers]:
    """Of a CPU with AVX512_BF16."""
    made: dict[str, Products] = {"own kernel": [], "packed kernel": [], "bfloat16": []}
    for out_features, in_features in SHAPES * NUM_BLOCKS:
        weight = torch.randn(out_features, in_features, dtype=torch.bfloat16)
        layer = _quantized(weight)
        made["own kernel"].append((in_features, PairedLinear.of(layer).product))
        layer(weight[:1])  # the first forward packs
        made["packed kernel"].append((in_features, PackedLinear.of(layer).product))
        made["bfloat16"].append((in_features, _plain_product(weight)))
    return {name: Layers(products, torch.bfloat16) for name, products in made.items()}


@torch.inference_mode()
def _quantized(weight: Tensor) -> Linear4bit:
    out_features, in_features = weight.shape
    layer = Linear4bit(in_features, out_features, bias=False, compute_dtype=weight.dtype)
    layer.weight = Params4bit(weight, False, quant_type="nf4", blocksize=BLOCK_SIZE)
    return layer.to("cpu").eval()  # which quantises


def float32_ways() -> dict[str, Layers]:
    """Of other CPUs."""
    made: dict[str, Products] = {"own kernel": [], "tiles": [], "float32": []}
    for out_features, in_features in SHAPES * NUM_BLOCKS:
        weight = torch.randn(out_features, in_features)
        stored, state = quantize_4bit(weight, blocksize=BLOCK_SIZE, quant_type="nf4")
        codes = stored.view(torch.uint8).view(out_features, -1)
        scales = state.absmax.view(out_features, -1)
        panel = PanelLinear(PanelWeight.arrange(codes, scales, state.code), None)
        tiled = UnpackedLinear(
            codes, scales, None, quant_type="nf4", block_size=BLOCK_SIZE, dtype=torch.float32
        )
        made["own kernel"].append((in_features, panel.product))
        made["tiles"].append((in_features, tiled.product))
        made["float32"].append((in_features, _plain_product(weight)))
    return {name: Layers(products, torch.float32) for name, products in made.items()}


def _plain_product(weight: Tensor) -> Product:
    return lambda x: F.linear(x, weight)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    flops = 2.0 * NUM_BLOCKS * sum(out * inner for out, inner in SHAPES)
    made = ways()
    sys.stdout.write(f"| rows | {' | '.join(f'{n}, ms | GFLOP/s' for n in made)} |\n")
    sys.stdout.write(f"|{'---|' * (1 + 2 * len(made))}\n")
    for num_rows in NUM_ROWS:
        found = [layers.milliseconds(num_rows) for layers in made.values()]
        cells = [f"{ms:.1f} | {flops * num_rows / ms / 1e6:.0f}" for ms in found]
        sys.stdout.write(f"| {num_rows} | {' | '.join(cells)} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
