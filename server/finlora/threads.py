"""How many threads torch computes with: the physical cores this process may use."""

import ctypes
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from finlora.cgroup import groups


def set_threads(num_threads: int) -> int:
    """Use that many threads; 0: OMP_NUM_THREADS if set, else `usable_cores`. What is used now."""
    wanted = wanted_threads(num_threads)
    if wanted is not None:
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations begun in this thread run in it alone meanwhile; other threads go on.

    A thread beside the engine's that computed in parallel would get threads of its own, and with
    more threads than cores OpenMP's barriers sleep where they spun: a step of a few rows takes a
    third longer from then on. Without OpenMP this does nothing. MKL's products are not held back.
    """
    num_threads = torch.get_num_threads()  # and with it the thread has its number: it is set once
    set_of_this_thread = getattr(ctypes.CDLL(None), "omp_set_num_threads", lambda _: None)
    set_of_this_thread(1)
    try:
        yield
    finally:
        set_of_this_thread(num_threads)


def wanted_threads(num_threads: int) -> int | None:
    """How many threads to use by the setting; None: OMP_NUM_THREADS has it."""
    if num_threads:
        return num_threads
    return None if "OMP_NUM_THREADS" in os.environ else usable_cores()


def usable_cores() -> int:
    """Physical cores, at most those of this process's affinity mask and of its quota.

    More threads than cores make every barrier of a parallel loop wait for the scheduler.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, int(min(cores, quota(groups()))))


def quota(folders: Iterable[Path]) -> float:
    """Cores that control groups grant, a container's or a systemd unit's; infinite: no limit."""
    return min((_quota(folder / "cpu.max") for folder in folders), default=math.inf)


def _quota(file: Path) -> float:
    try:
        granted, period = file.read_text("ascii").split()
        return math.inf if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
