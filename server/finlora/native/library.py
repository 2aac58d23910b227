"""Finds and loads the compiled kernels; says why where they cannot be used."""

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).parent / "_kernels.so"
AVX512_LIBRARY = LIBRARY.with_name("_kernels_avx512.so")  # the same and more, with AVX512_BF16
VERSION = 7  # of version.c
DTYPES = (torch.float32, torch.bfloat16)  # of the kernels that include vectors.h
LANES = 8  # sizes are multiples of it there
CAPABILITIES = ("AVX2", "AVX512")  # what torch calls CPUs that can run them


class KernelsUnusableError(Exception):
    """The kernels cannot be used here; the text says why."""


def obstacle() -> str | None:
    """Why the kernels cannot be used on this machine; None: they can."""
    try:
        load()
    except KernelsUnusableError as error:
        return str(error)
    return None


@cache
def load() -> ctypes.CDLL:
    """The library that is fastest here. Raises KernelsUnusableError."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in CAPABILITIES:
        raise KernelsUnusableError(f"the CPU's abilities are {capability}, AVX2 is needed")
    library = _load(LIBRARY)
    if library.finlora_has_avx512_bf16():
        with suppress(KernelsUnusableError):  # old compilers do not know these instructions
            return _load(AVX512_LIBRARY)
    return library


def avx512_obstacle() -> str | None:
    """Why kernels of AVX512_BF16 cannot be used on this machine; None: they can."""
    reason = obstacle()
    if reason is None and not hasattr(load(), "finlora_half_dots"):
        return "the CPU has no AVX512_BF16, or nothing was compiled for it"
    return reason


def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise KernelsUnusableError("they were not compiled when finlora was installed")
    try:
        library = ctypes.CDLL(str(path))
        found = library.finlora_kernels_version()
    except (OSError, AttributeError) as error:
        raise KernelsUnusableError(f"they cannot be loaded: {error}") from error
    if found != VERSION:
        raise KernelsUnusableError(f"they are of version {found}, needed is {VERSION}")
    return library


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Of a tensor's first number."""
    return ctypes.c_void_p(tensor.data_ptr())
