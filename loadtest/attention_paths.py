"""Times the ways to attend over the paged cache: our own kernel, and products over gathered pages.

Prints a Markdown table: microseconds of one layer of the default base (9 heads, 3 of keys, 64
numbers each), medians of many, in the type that it computes in.
"""

import argparse
import sys
import time
from statistics import median

import numpy as np
import torch

from finlora.engine import grouped_attention, native_attention
from finlora.engine.attention import AttentionBatch, Scores, SequenceSpan
from finlora.engine.kv_cache import Pages
from finlora.model import best_dtype
from finlora.native import library

NUM_HEADS, NUM_KV_HEADS, SIZE = 9, 3, 64
NUM_POOLS = 2  # taken in turn, so that a pool is not always in the cache
REPEATS = 30


def decoding(num_seqs: int, context: int) -> list[SequenceSpan]:
    """Sequences that add one token."""
    return [SequenceSpan(i, context, 1, decodes=True) for i in range(num_seqs)]


def prompts(num_seqs: int, cached: int, num_tokens: int) -> list[SequenceSpan]:
    """Sequences whose beginning comes from the cache."""
    return [SequenceSpan(i, cached, num_tokens, decodes=False) for i in range(num_seqs)]


STEPS = {
    "1 sequence decodes, context 100": decoding(1, 100),
    "8": decoding(8, 100),
    "32": decoding(32, 100),
    "64": decoding(64, 100),
    "16, context 1,000": decoding(16, 1000),
    "a prompt of 61 tokens": prompts(1, 0, 61),
    "20 prompts of 36 tokens behind 25": prompts(20, 25, 36),
    "a prompt of 512 tokens": prompts(1, 0, 512),
    "512 tokens behind 3,500": prompts(1, 3500, 512),
}


def table_of(spans: list[SequenceSpan]) -> tuple[Pages, int]:
    """Pages one after the other, page 0 left out; and how many there are."""
    longest = max(span.start + span.num_tokens for span in spans)
    columns = -(-longest // grouped_attention.BLOCK) * grouped_attention.BLOCK
    table = np.zeros((len(spans), columns), np.int64)
    num_pages = 1
    for span in spans:
        end = span.start + span.num_tokens
        table[span.row, :end] = np.arange(num_pages, num_pages + end)
        num_pages += end
    return table, num_pages


@torch.inference_mode()
def microseconds(batch: AttentionBatch, query: torch.Tensor) -> float:
    """Median time of one layer."""
    scores = Scores(SIZE**-0.5, None, None)
    times = []
    for i in range(REPEATS):
        begin = time.perf_counter()
        batch.attend(query, batch.pools[i % NUM_POOLS], scores)
        times.append(time.perf_counter() - begin)
    return median(times) * 1e6


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    dtype = best_dtype(torch.device("cpu"))
    sys.stdout.write("| step | own kernel, µs | gathered, µs |\n|---|---|---|\n")
    for name, spans in STEPS.items():
        table, num_pages = table_of(spans)
        shape = (num_pages, 2, NUM_KV_HEADS, SIZE)
        pools = [torch.randn(shape).to(dtype) for _ in range(NUM_POOLS)]
        query = torch.randn(sum(span.num_tokens for span in spans), NUM_HEADS, SIZE).to(dtype)
        own = "-"
        if library.obstacle() is None:
            own = f"{microseconds(native_attention.build_batch(pools, table, spans), query):,.0f}"
        gathered = microseconds(grouped_attention.build_batch(pools, table, spans), query)
        sys.stdout.write(f"| {name} | {own} | {gathered:,.0f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
