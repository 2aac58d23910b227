"""Whether the compiled kernels can be tested on this machine."""

import pytest

from finlora.native import library

MISSING = library.obstacle()
needs_kernels = pytest.mark.skipif(MISSING is not None, reason=f"compiled kernels: {MISSING}")
