"""Whether the compiled kernels can be tested on this machine, and with how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from finlora.native import library

MISSING = library.obstacle()
needs_kernels = pytest.mark.skipif(MISSING is not None, reason=f"compiled kernels: {MISSING}")
AVX512_MISSING = library.avx512_obstacle()
needs_avx512_kernels = pytest.mark.skipif(
    AVX512_MISSING is not None, reason=f"compiled kernels: {AVX512_MISSING}"
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for torch and the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
