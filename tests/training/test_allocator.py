import subprocess
import sys

import pytest

# In a process of its own: it cannot be undone, and the other tests' memory should go back.
PROGRAM = """
import resource
import torch
from finlora.training.allocator import keep_freed_memory

assert keep_freed_memory() is True
for _ in range(20):  # fragments settle
    torch.ones(32, 1024, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(32, 1024, 1024)
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_large_tensors_are_not_mapped_anew_each_time() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
