"""The engine's state at one moment, as the metrics and the API show it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts, shares (0 to 1) and bytes."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    memory_bytes: dict[str, int]
    num_adapters: dict[str, int]
    max_loras: int
    running_adapters: tuple[str, ...]
    waiting_adapters: tuple[str, ...]
