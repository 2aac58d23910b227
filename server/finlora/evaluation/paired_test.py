"""Whether one of two models answers the same rows better. Pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PairedTest:
    """McNemar's exact test (Psychometrika 12, 1947): of the rows that just one has right."""

    num_rows: int
    num_gained: int  # rows that only the new one has right
    num_lost: int  # rows that only the old one has right

    @property
    def p_value(self) -> float:
        """Two-sided: how likely a split at least this uneven is between equals."""
        num = self.num_gained + self.num_lost
        if self.num_gained == self.num_lost:
            return 1.0
        tail = sum(math.comb(num, k) for k in range(min(self.num_gained, self.num_lost) + 1))
        return min(1.0, float(tail / 2 ** (num - 1)))

    @property
    def is_worse(self) -> bool:
        """Whether the new one is worse, and chance alone would show that in under 5 % of cases."""
        return self.num_lost > self.num_gained and self.p_value < 0.05


def compare(new: Sequence[bool], old: Sequence[bool]) -> PairedTest:
    """Which rows the new and the old one have right."""
    pairs = list(zip(new, old, strict=True))
    return PairedTest(
        num_rows=len(pairs),
        num_gained=sum(n and not o for n, o in pairs),
        num_lost=sum(o and not n for n, o in pairs),
    )
