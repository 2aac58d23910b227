"""Lets the C library keep freed memory: a training step frees and takes gigabytes.

With glibc's defaults every large tensor is mapped and unmapped by the kernel, which takes half the
time of a step on a CPU. Costs memory that other processes could use meanwhile.
"""

import ctypes
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1


def keep_freed_memory() -> bool:
    """For the rest of the process; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, NEVER))
