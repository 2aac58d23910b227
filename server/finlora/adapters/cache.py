"""The tiers above the registry: disk -> RAM -> slot, each least recently used first out.

Every method but those that say otherwise runs on the engine's thread, the load itself on the
loader's. So a slow disk never holds up a step, and the tiers need no lock.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from finlora.adapters.adapter import Adapter
from finlora.adapters.loader import AdapterLoader
from finlora.adapters.residency import CacheObserver, ResidentAdapter, Sized, Slots
from finlora.errors import AdapterConflictError, AdapterError, AdapterLoadError, FinLoRAError

logger = logging.getLogger(__name__)

Weights = TypeVar("Weights", bound=Sized)


@dataclass(slots=True)
class _Version:
    """What is remembered of a version while it is in a tier."""

    name: str  # that it was loaded by
    num_bytes: int
    last_used: float | None = None


class AdapterCache(Generic[Weights]):
    """Keeps the adapters that requests need in RAM and in slots, by digest."""

    def __init__(
        self,
        load: Callable[[Adapter], Weights],
        slots: Slots[Weights],
        *,
        max_loras: int,
        max_bytes: int,
        observer: CacheObserver,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_loras = max_loras
        self.on_loaded = on_loaded
        self._loader = AdapterLoader(load, lambda: self.on_loaded())
        self._engine_slots = slots
        self._max_bytes = max_bytes
        self._observer = observer
        self._ram: OrderedDict[str, Weights] = OrderedDict()
        self._ram_bytes = 0  # counted as they come and go: adding up 1,000 adapters takes 0.1 s
        self._slots: OrderedDict[str, int] = OrderedDict()  # digest -> slot, oldest use first
        self._free_slots = list(range(max_loras - 1, -1, -1))
        self._users: dict[str, int] = {}  # digest -> running sequences
        self._holds: dict[str, int] = {}  # digest -> requests that have started on it
        self._pinned: set[str] = set()  # by an administrator
        self._wanted: frozenset[str] = frozenset()
        self._failed: dict[str, AdapterError] = {}
        self._versions: dict[str, _Version] = {}

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
            tier: [version.name for d in digests if (version := self._versions.get(d))]
            for tier, digests in tiers.items()
        }

    def residents(self) -> list[ResidentAdapter]:
        """Every version in memory or on its way there."""
        self._collect()
        held = [self._resident(*item) for item in self._versions.items()]
        coming = [
            ResidentAdapter(a.name, a.digest, loading=True, pinned=a.digest in self._pinned)
            for a in self._loader.loading
        ]
        return held + coming

    def load(self, adapter: Adapter) -> Future[None]:
        """Bring an adapter into RAM though no request needs it; done or failed when that ended."""
        self._collect()
        if not self.is_loaded(adapter):
            return self._loader.arrival(adapter)
        arrived: Future[None] = Future()
        arrived.set_result(None)
        return arrived

    def pin(self, adapter: Adapter) -> Future[None]:
        """`load`, and never let it make room for others until `unpin`.

        One slot at least stays free of pins, or the other adapters could not be served.
        Raises AdapterConflictError.
        """
        if adapter.digest not in self._pinned and len(self._pinned) >= self.max_loras - 1:
            raise AdapterConflictError(
                f"{len(self._pinned)} adapters are pinned, and one of the {self.max_loras} slots "
                "must be left for the others"
            )
        self._pinned.add(adapter.digest)
        return self.load(adapter)

    def unpin(self, digest: str) -> None:
        """Undo `pin`, if there was one."""
        self._pinned.discard(digest)
        self._trim_ram()

    def check_evictable(self, digest: str) -> None:
        """Raises AdapterConflictError while a version is pinned, loading or in use."""
        if digest in self._pinned:
            raise AdapterConflictError(f"version {digest[:12]} is pinned: unpin it first")
        if self._loader.is_loading(digest):
            raise AdapterConflictError(f"version {digest[:12]} is being loaded: try again")
        if digest in self._users or digest in self._holds:
            raise AdapterConflictError(f"requests run on version {digest[:12]}: try again")

    def evict(self, digest: str) -> None:
        """Take a version out of RAM and out of its slot. Raises AdapterConflictError."""
        self._collect()
        self.check_evictable(digest)
        if digest in self._ram:
            self._drop_from_ram(digest)
        if digest in self._slots:
            slot = self._slots.pop(digest)
            self._engine_slots.clear(slot)
            self._free_slots.append(slot)
            self._left(digest, "slot")

    def abandon_loads(self, error: FinLoRAError) -> None:
        """Nobody steps the engine any more: tell those who wait for a load."""
        self._loader.abandon(error)

    def expect(self, adapter: Adapter) -> None:
        """Begin to load what a request on its way will `want`; safe from any thread.

        The engine hears of a request when a step ends, and a step of prompts takes longer than a
        load. Not more than fill the slots: `want` knows better who is next.
        """
        if not self.is_loaded(adapter):
            self._loader.begin(adapter, max_loading=self.max_loras)

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
                self._loader.begin(adapter)

    def error(self, adapter: Adapter) -> AdapterError | None:
        """Why the last load of the adapter failed; asking clears it, so that it can be retried."""
        self._collect()
        return self._failed.pop(adapter.digest, None)

    def is_loaded(self, adapter: Adapter) -> bool:
        """Whether `acquire` needs no disk; safe from any thread."""
        return adapter.digest in self._slots or adapter.digest in self._ram

    def is_resident(self, adapter: Adapter) -> bool:
        """Whether the adapter is in a slot."""
        return adapter.digest in self._slots

    def acquire(self, adapter: Adapter) -> int | None:
        """A slot with a loaded adapter, kept there until `release`.

        None: no slot can be had, or the adapter could not be put there, and `error` says why.
        """
        digest = adapter.digest
        if digest not in self._slots and not self._fill_slot(digest):
            return None
        self._slots.move_to_end(digest)
        self._users[digest] = self._users.get(digest, 0) + 1
        self._versions[digest].last_used = time.time()
        return self._slots[digest]

    def release(self, adapter: Adapter) -> None:
        """Undo one `acquire`; the adapter stays in its slot until the room is needed."""
        _decrement(self._users, adapter.digest)

    def hold(self, adapter: Adapter) -> None:
        """Keep a started request's adapter at hand until `unhold`, whatever happens on disk."""
        self._holds[adapter.digest] = self._holds.get(adapter.digest, 0) + 1

    def unhold(self, adapter: Adapter) -> None:
        """Undo one `hold`."""
        _decrement(self._holds, adapter.digest)

    def close(self) -> None:
        """Stop the loader thread."""
        self._loader.close()

    def check_idle(self) -> None:
        """Raise RuntimeError when a sequence, a hold or a pin is left, or a slot is lost."""
        if self._users or self._holds or self._pinned:
            raise RuntimeError(
                f"adapter cache: sequences {self._users}, holds {self._holds}, "
                f"pins {self._pinned} are left"
            )
        if sorted([*self._slots.values(), *self._free_slots]) != list(range(self.max_loras)):
            raise RuntimeError("adapter cache: a slot is lost or used twice")

    def _resident(self, digest: str, version: _Version) -> ResidentAdapter:
        tiers = ["ram"] * (digest in self._ram) + ["slot"] * (digest in self._slots)
        return ResidentAdapter(
            version.name,
            digest,
            tuple(tiers),
            pinned=digest in self._pinned,
            num_bytes=version.num_bytes,
            last_used=version.last_used,
        )

    def _collect(self) -> None:
        for loaded in self._loader.take():
            digest, name = loaded.adapter.digest, loaded.adapter.name
            if self.is_loaded(loaded.adapter):
                continue  # expected just as another load of it was taken
            if isinstance(loaded.result, AdapterError):
                self._failed[digest] = loaded.result
                self._pinned.discard(digest)
                self._observer.adapter_load_failed(name)
            else:
                self._observer.adapter_loaded(name, "ram", loaded.seconds)
                self._keep_in_ram(digest, name, loaded.result)

    def _keep_in_ram(self, digest: str, name: str, weights: Weights) -> None:
        self._versions.setdefault(digest, _Version(name, weights.num_bytes))
        self._ram[digest] = weights
        self._ram_bytes += weights.num_bytes
        self._trim_ram(keep=digest)

    def _trim_ram(self, keep: str | None = None) -> None:
        for digest in list(self._ram):
            if self._ram_bytes <= self._max_bytes:
                return
            if digest != keep and self._may_leave_ram(digest):
                self._drop_from_ram(digest)

    def _drop_from_ram(self, digest: str) -> None:
        self._ram_bytes -= self._ram.pop(digest).num_bytes
        self._left(digest, "ram")

    def _fill_slot(self, digest: str) -> bool:
        slot = self._take_slot()
        if slot is None:
            return False
        started = time.perf_counter()
        try:
            self._engine_slots.write(slot, self._ram[digest])
        except Exception as error:  # of memory on a device, say: it is this adapter's trouble
            logger.exception("adapter %s does not go into a slot", self._versions[digest].name)
            self._free_slots.append(slot)
            self._failed[digest] = AdapterLoadError(f"{type(error).__name__}: {error}")
            return False
        seconds = time.perf_counter() - started
        self._observer.adapter_loaded(self._versions[digest].name, "slot", seconds)
        self._ram.move_to_end(digest)
        self._slots[digest] = slot
        self._trim_ram()  # what another adapter had borrowed may go now
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
        self._observer.adapter_evicted(self._versions[digest].name, tier)
        if digest not in self._ram and digest not in self._slots:
            del self._versions[digest]

    def _may_leave_ram(self, digest: str) -> bool:
        if digest in self._slots and self._engine_slots.borrows:
            return False
        pinned_here = digest in self._pinned and digest not in self._slots
        return not (pinned_here or digest in self._wanted or digest in self._holds)

    def _may_leave_slot(self, digest: str) -> bool:
        if digest in self._users or digest in self._pinned:
            return False
        # The slot may hold the only copy of a version that a started request needs again.
        return digest in self._ram or digest not in self._holds


def _decrement(counts: dict[str, int], digest: str) -> None:
    counts[digest] -= 1
    if not counts[digest]:
        del counts[digest]
