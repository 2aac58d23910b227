"""The tiers above the registry: disk -> RAM -> slot, each least recently used first out.

Every method runs on the engine's thread; only the load itself runs on the loader thread, which
hands its result back through a queue. So a slow disk never holds up a step, and there is no lock.
"""

import logging
import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from finlora.adapters.adapter import Adapter
from finlora.errors import AdapterError, AdapterLoadError

logger = logging.getLogger(__name__)


class Sized(Protocol):
    """Weights that know their size."""

    @property
    def num_bytes(self) -> int:
        """Bytes in RAM."""
        ...


Weights = TypeVar("Weights", bound=Sized)


class CacheObserver(Protocol):
    """Told what the cache does (the metrics)."""

    def adapter_loaded(self, adapter: str, tier: str, seconds: float) -> None:
        """An adapter reached `ram` or `slot`."""

    def adapter_evicted(self, adapter: str, tier: str) -> None:
        """An adapter left `ram` or `slot` to make room."""

    def adapter_load_failed(self, adapter: str) -> None:
        """An adapter could not be loaded."""


@dataclass(slots=True)
class _Loaded(Generic[Weights]):
    digest: str
    name: str
    result: Weights | AdapterError
    seconds: float


class AdapterCache(Generic[Weights]):
    """Keeps the adapters that requests need in RAM and in slots, by digest."""

    def __init__(
        self,
        load: Callable[[Adapter], Weights],
        write: Callable[[int, Weights], None],
        *,
        max_loras: int,
        max_bytes: int,
        observer: CacheObserver,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_loras = max_loras
        self._load = load
        self._write = write
        self._max_bytes = max_bytes
        self._observer = observer
        self.on_loaded = on_loaded
        self._ram: OrderedDict[str, Weights] = OrderedDict()
        self._ram_bytes = 0  # counted as they come and go: adding up 1,000 adapters takes 0.1 s
        self._slots: OrderedDict[str, int] = OrderedDict()  # digest -> slot, oldest use first
        self._free_slots = list(range(max_loras - 1, -1, -1))
        self._pins: dict[str, int] = {}  # digest -> running sequences
        self._holds: dict[str, int] = {}  # digest -> requests that have started on it
        self._wanted: frozenset[str] = frozenset()
        self._loading: set[str] = set()
        self._failed: dict[str, AdapterError] = {}
        self._names: dict[str, str] = {}  # digest -> name it was loaded by
        self._done: queue.SimpleQueue[_Loaded[Weights]] = queue.SimpleQueue()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")

    @property
    def num_resident(self) -> int:
        """Adapters in slots."""
        return len(self._slots)

    @property
    def num_in_ram(self) -> int:
        """Adapters in RAM."""
        return len(self._ram)

    @property
    def ram_bytes(self) -> int:
        """Bytes of the RAM tier."""
        return self._ram_bytes

    @property
    def resident_names(self) -> dict[str, list[str]]:
        """Names of the adapters in each tier; safe from any thread."""
        tiers = {"slot": list(self._slots), "ram": list(self._ram)}
        return {
            tier: [self._names[digest] for digest in digests if digest in self._names]
            for tier, digests in tiers.items()
        }

    def want(self, adapters: Sequence[Adapter]) -> None:
        """Name the adapters that the head of the queue needs next, most urgent first.

        Loads of the missing ones begin; none of them is evicted from RAM until the next call.
        """
        self._collect()
        self._wanted = frozenset(adapter.digest for adapter in adapters)
        self._failed = {d: error for d, error in self._failed.items() if d in self._wanted}
        for adapter in adapters:
            digest = adapter.digest
            if digest not in self._ram and digest not in self._slots and digest not in self._failed:
                self._begin_load(adapter)

    def error(self, adapter: Adapter) -> AdapterError | None:
        """Why the last load of the adapter failed; asking clears it, so that it can be retried."""
        self._collect()
        return self._failed.pop(adapter.digest, None)

    def is_loaded(self, adapter: Adapter) -> bool:
        """Whether `acquire` needs no disk."""
        return adapter.digest in self._slots or adapter.digest in self._ram

    def is_resident(self, adapter: Adapter) -> bool:
        """Whether the adapter is in a slot."""
        return adapter.digest in self._slots

    def acquire(self, adapter: Adapter) -> int | None:
        """Pin a loaded adapter in a slot, copied there if needed; None: all slots are pinned."""
        digest = adapter.digest
        if digest not in self._slots and not self._fill_slot(digest):
            return None
        self._slots.move_to_end(digest)
        self._pins[digest] = self._pins.get(digest, 0) + 1
        return self._slots[digest]

    def release(self, adapter: Adapter) -> None:
        """Undo one `acquire`; the adapter stays in its slot until the room is needed."""
        _decrement(self._pins, adapter.digest)

    def hold(self, adapter: Adapter) -> None:
        """Keep a started request's adapter at hand until `unhold`, whatever happens on disk."""
        self._holds[adapter.digest] = self._holds.get(adapter.digest, 0) + 1

    def unhold(self, adapter: Adapter) -> None:
        """Undo one `hold`."""
        _decrement(self._holds, adapter.digest)

    def close(self) -> None:
        """Stop the loader thread."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def check_idle(self) -> None:
        """Raise RuntimeError when a pin or a hold is left, or a slot is lost."""
        if self._pins or self._holds:
            raise RuntimeError(f"adapter cache: pins {self._pins}, holds {self._holds} are left")
        if sorted([*self._slots.values(), *self._free_slots]) != list(range(self.max_loras)):
            raise RuntimeError("adapter cache: a slot is lost or used twice")

    def _begin_load(self, adapter: Adapter) -> None:
        if adapter.digest not in self._loading:
            self._loading.add(adapter.digest)
            self._loader.submit(self._run_load, adapter)

    def _run_load(self, adapter: Adapter) -> None:
        started = time.perf_counter()
        result: Weights | AdapterError
        try:
            result = self._load(adapter)
        except AdapterError as error:
            result = error
        except Exception as error:  # one adapter's trouble stays its own
            logger.exception("loading adapter %s failed", adapter.name)
            result = AdapterLoadError(f"adapter {adapter.name}: {type(error).__name__}: {error}")
        self._done.put(_Loaded(adapter.digest, adapter.name, result, time.perf_counter() - started))
        self.on_loaded()

    def _collect(self) -> None:
        while not self._done.empty():
            loaded = self._done.get()
            self._loading.discard(loaded.digest)
            if isinstance(loaded.result, AdapterError):
                self._failed[loaded.digest] = loaded.result
                self._observer.adapter_load_failed(loaded.name)
            else:
                self._observer.adapter_loaded(loaded.name, "ram", loaded.seconds)
                self._names[loaded.digest] = loaded.name
                self._ram[loaded.digest] = loaded.result
                self._ram_bytes += loaded.result.num_bytes
                self._trim_ram(keep=loaded.digest)

    def _trim_ram(self, keep: str) -> None:
        for digest in list(self._ram):
            if self._ram_bytes <= self._max_bytes:
                return
            if digest == keep or digest in self._wanted or digest in self._holds:
                continue
            self._ram_bytes -= self._ram.pop(digest).num_bytes
            self._left(digest, "ram")

    def _fill_slot(self, digest: str) -> bool:
        slot = self._take_slot()
        if slot is None:
            return False
        started = time.perf_counter()
        try:
            self._write(slot, self._ram[digest])
        except BaseException:
            self._free_slots.append(slot)
            raise
        seconds = time.perf_counter() - started
        self._observer.adapter_loaded(self._names[digest], "slot", seconds)
        self._ram.move_to_end(digest)
        self._slots[digest] = slot
        return True

    def _take_slot(self) -> int | None:
        if self._free_slots:
            return self._free_slots.pop()
        idle = next((digest for digest in self._slots if self._may_leave_slot(digest)), None)
        if idle is None:
            return None
        slot = self._slots.pop(idle)
        self._left(idle, "slot")
        return slot

    def _left(self, digest: str, tier: str) -> None:
        self._observer.adapter_evicted(self._names[digest], tier)
        if digest not in self._ram and digest not in self._slots:
            del self._names[digest]

    def _may_leave_slot(self, digest: str) -> bool:
        # The slot may hold the only copy of a version that a started request needs again.
        return digest not in self._pins and (digest in self._ram or digest not in self._holds)


def _decrement(counts: dict[str, int], digest: str) -> None:
    counts[digest] -= 1
    if not counts[digest]:
        del counts[digest]
