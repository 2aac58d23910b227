"""What measured figures depend on: processor, memory and the versions of the libraries."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("finlora", "torch", "transformers", "peft", "bitsandbytes")


def machine_facts() -> dict[str, Any]:
    """The facts, ready for JSON."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor()
    names = (line for line in file.read_text().splitlines() if line.startswith("model name"))
    return next(names, "unknown").partition(":")[2].strip()
