"""Times the norm and the gated product of a block of the default base, by torch and by our kernels.

Prints a Markdown table: microseconds of a call, the least and the median of many, in both types.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from finlora.engine.compiled_modules import CompiledRMSNorm
from finlora.native.elementwise import gated_silu

HIDDEN, INTERMEDIATE = 576, 1536
NUM_ROWS = (1, 16, 64, 700)
REPEATS = 200

Call = Callable[[], Tensor]


def calls(num_rows: int, dtype: torch.dtype) -> list[Call]:
    """The norm by torch and by us, then the gated product by torch and by us."""
    norm: Any = LlamaRMSNorm(HIDDEN).to(dtype)
    compiled = CompiledRMSNorm(norm)
    silu: nn.Module = ACT2FN["silu"]
    x = torch.randn(1, num_rows, HIDDEN).to(dtype)
    gate, up = torch.randn(1, num_rows, 2 * INTERMEDIATE).to(dtype).split(INTERMEDIATE, -1)
    return [
        lambda: norm(x),
        lambda: compiled(x),
        lambda: silu(gate) * up,
        lambda: gated_silu(gate, up),
    ]


def microseconds(call: Call) -> str:
    """Least and median."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return f"{min(times) * 1e6:.0f} / {median(times) * 1e6:.0f}"


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Print the table for as many threads as torch uses (OMP_NUM_THREADS)."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    columns = ("type", "rows", "norm, torch", "norm, own", "gated, torch", "gated, own")
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for dtype in (torch.float32, torch.bfloat16):
        for num_rows in NUM_ROWS:
            cells = [microseconds(call) for call in calls(num_rows, dtype)]
            name = str(dtype).removeprefix("torch.")
            sys.stdout.write(f"| {name} | {num_rows} | {' | '.join(cells)} |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
