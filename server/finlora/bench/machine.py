"""What measured figures depend on: processor, memory and the versions of the libraries."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from finlora.native import library

PACKAGES = ("finlora", "torch", "transformers", "peft", "bitsandbytes")


def machine_facts() -> dict[str, Any]:
    """The facts, ready for JSON."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        # Without it NF4 layers run in float32, by our own kernels where these are compiled.
        "avx512_bf16": "avx512_bf16" in _cpuinfo("flags").split(),
        "own_kernels": library.obstacle() is None,
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(field: str) -> str:
    """A field of the first processor in Linux's list; empty where there is none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, "")
