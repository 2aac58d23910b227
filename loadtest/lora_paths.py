"""Times the two ways in which the engine applies adapters to a mixed batch, on joined layers.

Prints a Markdown table: microseconds for all ranks at once with a mask, and adapter by adapter.
"""

import sys
import time
from itertools import product
from statistics import median
from unittest.mock import patch

import torch

from finlora.engine.lora import LoRABatch, LoRALayerSlots, LoRAWeights, Segment
from finlora.engine.siblings import LayerGroup

# Of the default base.
GROUPS = (
    LayerGroup(("q_proj", "k_proj", "v_proj"), 576, (576, 192, 192)),
    LayerGroup(("gate_proj", "up_proj"), 576, (1536, 1536)),
    LayerGroup(("down_proj",), 1536, (576,)),
)
NUM_ROWS = (32, 256, 1024)
NUM_ADAPTERS = (1, 4, 16)
RANKS = (8, 16)
REPEATS = 100
LIMIT = "finlora.engine.lora.MAX_PRODUCTS_PER_MATMUL"


def slots(group: LayerGroup, num_adapters: int, rank: int) -> LoRALayerSlots:
    """The slots of one group, all filled."""
    layer = LoRALayerSlots(group, num_adapters, rank, torch.bfloat16, "cpu")
    for slot in range(num_adapters):
        layer.write(slot, [_weights(group.in_features, rank, size) for size in group.out_features])
    return layer


def _weights(in_features: int, rank: int, out_features: int) -> LoRAWeights:
    a = torch.randn(rank, in_features, dtype=torch.bfloat16)
    return LoRAWeights(a, torch.randn(rank, out_features, dtype=torch.bfloat16))


def even_batch(num_rows: int, num_adapters: int) -> LoRABatch:
    """Rows spread evenly, an adapter's next to each other, as the scheduler sorts them."""
    share = num_rows // num_adapters
    segments = [Segment(slot, slot * share, (slot + 1) * share) for slot in range(num_adapters)]
    batch = LoRABatch.of_segments(segments, num_rows)
    assert batch is not None
    return batch


@torch.inference_mode()
def microseconds(group: LayerGroup, layer: LoRALayerSlots, batch: LoRABatch, limit: int) -> float:
    """Median time of one application; `limit` decides which way is taken."""
    x = torch.randn(batch.num_rows, group.in_features, dtype=torch.bfloat16)
    y = torch.zeros(batch.num_rows, sum(group.out_features), dtype=torch.bfloat16)
    times = []
    with patch(LIMIT, limit):
        for _ in range(REPEATS):
            begin = time.perf_counter()
            layer.apply(x, y, None, batch)
            times.append(time.perf_counter() - begin)
    return median(times) * 1e6


def main() -> int:
    """Print the table."""
    sys.stdout.write("| layers | rows | adapters | rank | all at once, µs | one by one, µs |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for group, num_rows, num_adapters, rank in product(GROUPS, NUM_ROWS, NUM_ADAPTERS, RANKS):
        layer, batch = slots(group, num_adapters, rank), even_batch(num_rows, num_adapters)
        at_once = microseconds(group, layer, batch, limit=sys.maxsize)
        one_by_one = microseconds(group, layer, batch, limit=0)
        names = ", ".join(name.removesuffix("_proj") for name in group.names)
        cells = (names, num_rows, num_adapters, rank, f"{at_once:.0f}", f"{one_by_one:.0f}")
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
