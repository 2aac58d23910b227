"""How long an adapter takes into a slot: from RAM, and from disk."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finlora.adapters.adapter import WEIGHTS_FILE, Adapter
from finlora.bench.statistics import percentile
from finlora.bench.subject import Subject, subject
from finlora.config import Settings

# Fewer slots than adapters and no RAM for adapters that nobody wants: every turn is cold.
NUM_SLOTS = 2
NUM_IN_TURN = 4


@dataclass(frozen=True, slots=True)
class Swap:
    """Times of one way into a slot."""

    way: str
    rank: int
    adapter_bytes: int  # in RAM, in the compute type
    samples: int
    p50_seconds: float
    p99_seconds: float


def swap(settings: Settings, *, rank: int, samples: int) -> list[Swap]:
    """Both ways, in an engine of their own that does nothing else meanwhile.

    Files are put out of the page cache before every read from disk, where the system can do that.
    """
    own = settings.model_copy(update={"max_loras": NUM_SLOTS, "adapter_cache_bytes": 1})
    with subject(own, num_adapters=NUM_IN_TURN + 1, rank=rank) as made:
        *in_turn, other = made.adapters
        _bring_into_ram(made, in_turn)
        num_bytes = made.engine.adapters.ram_bytes // NUM_IN_TURN
        warm = [_ram_to_slot(made, in_turn[i % NUM_IN_TURN]) for i in range(samples)]
        _bring_into_ram(made, [other])  # the room for it puts the others out
        # Goes on where the last loop ended: its last adapters are still in the slots.
        turns = range(samples, 2 * samples)
        cold = [_disk_to_slot(made, in_turn[i % NUM_IN_TURN]) for i in turns]
        made.engine.adapters.want([])
    ways = {"RAM to slot": warm, "disk to slot": cold}
    return [
        Swap(way, rank, num_bytes, samples, percentile(times, 0.5), percentile(times, 0.99))
        for way, times in ways.items()
    ]


def forget_file(adapter: Adapter) -> None:
    """Put an adapter's weights out of the system's page cache (Linux; elsewhere they stay)."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(adapter.folder / WEIGHTS_FILE, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not written yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _disk_to_slot(made: Subject, adapter: Adapter) -> float:
    forget_file(adapter)

    def load() -> None:
        _bring_into_ram(made, [adapter])
        made.engine.adapters.acquire(adapter)

    seconds = _timed(load)
    made.engine.adapters.release(adapter)
    return seconds


def _ram_to_slot(made: Subject, adapter: Adapter) -> float:
    seconds = _timed(lambda: made.engine.adapters.acquire(adapter))
    made.engine.adapters.release(adapter)
    return seconds


def _bring_into_ram(made: Subject, adapters: Sequence[Adapter]) -> None:
    cache = made.engine.adapters
    cache.want(adapters)
    while not all(cache.is_loaded(adapter) for adapter in adapters):
        made.driver.wait_for_load()
        for adapter in adapters:
            error = cache.error(adapter)
            if error is not None:
                raise error
        cache.want(adapters)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
