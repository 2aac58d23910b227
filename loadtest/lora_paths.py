"""Times the ways in which the engine applies adapters to a mixed batch, on joined layers.

Prints a Markdown table: microseconds by our own kernel, and by torch's operations with the rows of
all adapters in one stack, or adapter by adapter, in the type that the default base computes in.
"""

import argparse
import sys
import time
from itertools import product
from statistics import median
from unittest.mock import patch

import torch

from finlora.engine.lora import LayerSlots, layer_slots
from finlora.engine.lora_batch import LoRABatch, Segment
from finlora.engine.lora_weights import LoRAWeights
from finlora.engine.siblings import LayerGroup
from finlora.engine.stacked_slots import MAX_PRODUCTS_PER_MATMUL
from finlora.model import best_dtype
from finlora.native import library

# Of the default base.
GROUPS = (
    LayerGroup(("q_proj", "k_proj", "v_proj"), 576, (576, 192, 192)),
    LayerGroup(("gate_proj", "up_proj"), 576, (1536, 1536)),
    LayerGroup(("down_proj",), 1536, (576,)),
)
NUM_ROWS = (30, 250, 1000)
NUM_ADAPTERS = (1, 4, 16)
RANKS = (8, 16)
REPEATS = 100
# With torch's operations: products that one more adapter in a stack may cost.
LIMITS = {"stacked": sys.maxsize, "one by one": 0}


def slots(group: LayerGroup, num_adapters: int, rank: int, dtype: torch.dtype) -> LayerSlots:
    """The slots of one group, all filled."""
    layer = layer_slots(group, num_adapters, rank, dtype, "cpu")
    for slot in range(num_adapters):
        layer.write(slot, [_weights(group.in_features, rank, n, dtype) for n in group.out_features])
    return layer


def _weights(in_features: int, rank: int, out_features: int, dtype: torch.dtype) -> LoRAWeights:
    a = torch.randn(rank, in_features, dtype=dtype)
    return LoRAWeights(a, torch.randn(rank, out_features, dtype=dtype))


def spread(num_rows: int, num_adapters: int) -> LoRABatch:
    """Rows spread almost evenly, an adapter's next to each other, as the scheduler sorts them."""
    share, num_larger = divmod(num_rows, num_adapters)
    return LoRABatch(
        tuple(Segment(slot, share + (slot < num_larger)) for slot in range(num_adapters))
    )


def slots_by_way(
    group: LayerGroup, num_adapters: int, rank: int, dtype: torch.dtype
) -> dict[str, LayerSlots]:
    """The same slots for each way that this machine has."""
    found = {}
    if library.obstacle() is None:
        found["own kernel"] = slots(group, num_adapters, rank, dtype)
    with patch.object(library, "obstacle", return_value="not asked for"):
        for way, limit in LIMITS.items():
            with patch.dict(MAX_PRODUCTS_PER_MATMUL, {dtype: limit}):
                found[way] = slots(group, num_adapters, rank, dtype)
    return found


@torch.inference_mode()
def microseconds(
    layer: LayerSlots, group: LayerGroup, num_adapters: int, num_rows: int, dtype: torch.dtype
) -> float:
    """Median time of one application to the rows of all slots."""
    batch = spread(num_rows, num_adapters)
    x = torch.randn(num_rows, group.in_features, dtype=dtype)
    y = torch.zeros(num_rows, sum(group.out_features), dtype=dtype)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        layer.apply(x, y, None, batch)
        times.append(time.perf_counter() - begin)
    return median(times) * 1e6


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    dtype = best_dtype(torch.device("cpu"))
    ways = ("own kernel", *LIMITS)
    columns = ("layers", "rows", "adapters", "rank", *(f"{way}, µs" for way in ways))
    sys.stdout.write(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")
    for group, num_rows, num_adapters, rank in product(GROUPS, NUM_ROWS, NUM_ADAPTERS, RANKS):
        layers = slots_by_way(group, num_adapters, rank, dtype)
        times = {
            way: microseconds(layer, group, num_adapters, num_rows, dtype)
            for way, layer in layers.items()
        }
        names = ", ".join(name.removesuffix("_proj") for name in group.names)
        measured = (f"{times[way]:.0f}" if way in times else "-" for way in ways)
        cells = (names, str(num_rows), str(num_adapters), str(rank), *measured)
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
