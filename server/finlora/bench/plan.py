"""What one run of `finlora bench` measures. Does not import torch: its help has to be quick."""

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """A thing that can be measured alone."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    SWAP = "swap"
    MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of the measurements."""

    parts: tuple[Part, ...] = tuple(Part)
    prompt_tokens: tuple[int, ...] = (64,)
    num_prompts: int = 64
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    context: int = 100
    num_steps: int = 32
    adapters: int = 4
    rank: int = 8
    rounds: int = 7
    mixed_batch_size: int = 32
    swaps: int = 100
