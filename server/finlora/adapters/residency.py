"""What is said of adapters in memory: their size, their moves, where a version is."""

from dataclasses import dataclass
from typing import Protocol, TypeVar


class Sized(Protocol):
    """Weights that know their size."""

    @property
    def num_bytes(self) -> int:
        """Bytes in RAM."""
        ...


Weights = TypeVar("Weights", contravariant=True)


class Slots(Protocol[Weights]):
    """Places from which the engine applies adapters."""

    @property
    def borrows(self) -> bool:
        """Whether a slot reads weights where they lie in RAM, instead of holding a copy."""
        ...

    def write(self, slot: int, weights: Weights) -> None:
        """Put an adapter into a slot, in place of whatever was there."""

    def clear(self, slot: int) -> None:
        """Let go of what is in a slot."""


class CacheObserver(Protocol):
    """Told what the cache does (the metrics)."""

    def adapter_loaded(self, adapter: str, tier: str, seconds: float) -> None:
        """An adapter reached `ram` or `slot`."""

    def adapter_evicted(self, adapter: str, tier: str) -> None:
        """An adapter left `ram` or `slot`."""

    def adapter_load_failed(self, adapter: str) -> None:
        """An adapter could not be loaded."""


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """One version in memory, or on its way there; `last_used` is seconds since the epoch."""

    name: str  # that it was loaded by
    digest: str
    tiers: tuple[str, ...] = ()  # of "ram" and "slot"; none yet while it loads
    loading: bool = False
    pinned: bool = False
    num_bytes: int = 0
    last_used: float | None = None
