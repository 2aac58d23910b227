"""Processor, memory and allocator, as the operating system tells them. No torch."""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from finlora.config import GIB, Settings
from finlora.doctor.findings import Finding, note, ok
from finlora.metrics.gauges import CGROUP_FOLDER, memory_limit_bytes

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
THRESHOLDS = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}
# Beside the caches that the settings size: libraries, activations, a small base.
OTHER_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class Processor:
    """What /proc/cpuinfo says, where there is one."""

    model: str
    features: frozenset[str]

    @classmethod
    def read(cls, file: Path = Path("/proc/cpuinfo")) -> "Processor":
        """The first processor's; all of a machine are alike."""
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            return cls(platform.processor() or platform.machine(), frozenset())
        pairs = (line.partition(":")[::2] for line in text.splitlines())
        fields = {key.strip(): value.strip() for key, value in reversed(list(pairs))}
        flags = fields.get("flags", fields.get("Features", ""))
        return cls(fields.get("model name", platform.machine()), frozenset(flags.split()))


def check_processor(processor: Processor) -> Iterator[Finding]:
    """Model, cores and the instructions that matter."""
    cores, threads = psutil.cpu_count(logical=False), psutil.cpu_count()
    present = [name for name in CPU_FEATURES if name in processor.features]
    text = f"{processor.model}: {cores} cores, {threads} threads, {', '.join(present) or 'no AVX'}"
    yield ok("cpu", text, model=processor.model, cores=cores, threads=threads, features=present)


def check_memory(settings: Settings, cgroup: Path = CGROUP_FOLDER) -> Iterator[Finding]:
    """Whether what the settings ask for is there, and a process here may take it."""
    memory, total = psutil.virtual_memory(), memory_limit_bytes(cgroup)
    available = min(memory.available, total)
    caches = settings.kv_cache_bytes + settings.adapter_cache_bytes
    limit = ", the container's limit" if total < memory.total else ""
    text = f"{_gib(available)} of {_gib(total)} free{limit}"
    facts = {"available_bytes": available, "total_bytes": total}
    if available >= caches + OTHER_BYTES:
        yield ok("memory", text, **facts)
        return
    yield note(
        "memory",
        f"{text}; the caches may take {_gib(caches)}",
        "end other programs, or lower --kv-cache-bytes and --adapter-cache-bytes",
        **facts,
    )


def check_allocator(
    environment: Mapping[str, str] = os.environ, maps: Path = Path("/proc/self/maps")
) -> Iterator[Finding]:
    """Which malloc a process of this shell gets, and whether it keeps what is freed."""
    try:
        loaded = maps.read_text("utf-8", "replace")
    except OSError:
        loaded = ""
    other = next((name for name in ALLOCATORS if name in loaded), None)
    if other is not None:
        yield ok("allocator", f"{other} is preloaded", name=other)
        return
    name = platform.libc_ver()[0] or "the system's"
    missing = [variable for variable in THRESHOLDS if variable not in environment]
    if name != "glibc" or not missing:
        yield ok("allocator", name if name != "glibc" else f"{name} with thresholds", name=name)
        return
    yield note(
        "allocator",
        "glibc returns large activations to the kernel in every step, which can cost half of it",
        "export "
        + " ".join(f"{key}={value}" for key, value in THRESHOLDS.items())
        + " before `finlora serve` (`make serve` does), or preload jemalloc",
        name=name,
        missing=missing,
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
