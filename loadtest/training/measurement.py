"""What one run of a loop gave, and how its process measures it."""

import json
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

KIB = 1024


@dataclass(frozen=True)
class Measurement:
    """One run in a process of its own."""

    loop: str
    losses: list[float]  # mean over the target tokens of each step
    step_seconds: list[float]  # from the end of the step before: collating is part of it
    step_tokens: list[int]  # of the rows, padding not counted
    computed_tokens: list[int]  # that went through the layers: padded, shared prefixes once
    valid_loss: float
    peak_bytes: int
    num_threads: int
    dtype: str
    linear_parameters: int
    matmul_flops: float = 0.0  # a second, where the process measured it

    @property
    def tokens_per_second(self) -> float:
        """Of the rows, without the first step, which warms up."""
        return sum(self.step_tokens[1:]) / sum(self.step_seconds[1:])

    @property
    def computed_per_second(self) -> float:
        """Likewise, of tokens that were computed."""
        return sum(self.computed_tokens[1:]) / sum(self.step_seconds[1:])

    @property
    def mean_loss(self) -> float:
        """Over the second half of the steps."""
        return fmean(self.losses[len(self.losses) // 2 :])

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self))


class StepClock:
    """Seconds from one step's end to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def start(self) -> None:
        """Training begins now."""
        self._last = time.perf_counter()

    def step(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def peak_bytes() -> int:
    """Most resident memory of this process so far.

    Linux carries `ru_maxrss` over from the process that started this one; VmHWM begins anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
