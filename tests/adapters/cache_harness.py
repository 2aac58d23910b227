"""An adapter cache whose disk and slots are visible to the test."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from finlora.adapters.adapter import Adapter, LoRAConfig, Manifest
from finlora.adapters.cache import AdapterCache
from finlora.errors import AdapterLoadError


def make_adapter(name: str) -> Adapter:
    config = LoRAConfig(r=1, lora_alpha=1)
    return Adapter(name, "test", f"digest-{name}", Path(), config, Manifest())


@dataclass(frozen=True)
class Weights:
    name: str
    num_bytes: int = 10


@dataclass
class Slots:
    """Remember who was written where."""

    borrows: bool
    names: dict[int, str] = field(default_factory=dict)

    def write(self, slot: int, weights: Weights) -> None:
        self.names[slot] = weights.name

    def clear(self, slot: int) -> None:
        del self.names[slot]


@dataclass
class Harness:
    """A cache whose disk and slots are visible to the test."""

    max_loras: int = 2
    borrows: bool = False
    loads: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    loaded: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()
        self.slots = Slots(self.borrows)
        self.cache: AdapterCache[Weights] = AdapterCache(
            self._load,
            self.slots,
            max_loras=self.max_loras,
            max_bytes=25,
            observer=self,
            on_loaded=self.loaded.release,
        )

    def _load(self, adapter: Adapter) -> Weights:
        assert self.gate.wait(10)
        self.loads.append(adapter.name)
        if adapter.name in self.broken:
            raise AdapterLoadError(f"{adapter.name} is broken")
        if adapter.name == "odd":
            raise ZeroDivisionError
        return Weights(adapter.name)

    def adapter_loaded(self, adapter: str, tier: str, seconds: float) -> None:
        self.events.append(f"{adapter} in {tier}")

    def adapter_evicted(self, adapter: str, tier: str) -> None:
        self.events.append(f"{adapter} out of {tier}")

    def adapter_load_failed(self, adapter: str) -> None:
        self.events.append(f"{adapter} failed")

    def load(self, *names: str) -> None:
        adapters = [make_adapter(name) for name in names]
        missing = sum(not self.cache.is_loaded(adapter) for adapter in adapters)
        self.cache.want(adapters)
        for _ in range(missing):
            assert self.loaded.acquire(timeout=10)
        self.cache.want(adapters)

    def slot_of(self, name: str) -> str | None:
        slot = self.cache.acquire(make_adapter(name))
        return None if slot is None else self.slots.names[slot]
