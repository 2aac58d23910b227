"""What the load generator takes from the machine that it shares with the server."""

import os
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientCost:
    """Processor time of this process over some time."""

    cpu_seconds: float
    wall_seconds: float
    num_cpus: int

    @property
    def cores(self) -> float:
        """Cores kept busy in the mean."""
        return self.cpu_seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def machine_share(self) -> float:
        """Share of all cores that this process may use."""
        return self.cores / self.num_cpus


class CostMeter:
    """Measures from when it is made; all threads of the process count."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def read(self) -> ClientCost:
        """The cost so far."""
        return ClientCost(
            cpu_seconds=time.process_time() - self._cpu,
            wall_seconds=time.perf_counter() - self._wall,
            num_cpus=num_cpus(),
        )


def num_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
