"""The engine's state at one moment, as the metrics and the API show it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts, shares (0 to 1) and bytes."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    base_bytes: dict[str, int]  # by part of the base
    adapter_bytes: dict[str, int]  # by tier
    kv_cache_bytes: int
    num_kv_pages: int  # one token each
    prefix_cache_bytes: int  # of the KV cache
    cuda_bytes: dict[str, int]  # empty on a CPU
    resident_adapters: dict[str, list[str]]  # names by tier
    max_loras: int
    running_adapters: tuple[str, ...]
    waiting_adapters: tuple[str, ...]

    @property
    def num_adapters(self) -> dict[str, int]:
        """Adapters held by each tier."""
        return {tier: len(names) for tier, names in self.resident_adapters.items()}

    @property
    def memory_bytes(self) -> dict[str, int]:
        """What each part holds."""
        return {
            **{f"base_{part}": size for part, size in self.base_bytes.items()},
            "kv_cache": self.kv_cache_bytes,
            "adapter_slots": self.adapter_bytes["slot"],
            "adapter_cache": self.adapter_bytes["ram"],
        }
