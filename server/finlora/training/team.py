"""The processes that train one adapter together, as `accelerate launch` or torchrun start them.

Every process reads the same rows and plans the same steps; each computes its part of a step's
batches, and the gradients are added up. So N processes learn what one would learn that accumulates
N times as many batches a step. Only the first tells, writes and registers.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finlora.errors import ConfigError

# The others wait while the first evaluates or writes; a process that died is noticed at once.
MAX_WAIT = timedelta(hours=2)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """One process among `size`; alone, every method does nothing."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"  # where what is exchanged must lie

    @property
    def leads(self) -> bool:
        """Whether this process tells and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part; may be empty."""
        return items[self.rank :: self.size]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all gradients, in one exchange."""
        if self.size == 1:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def add(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def any(self, fact: bool) -> bool:
        """Whether it holds in one of the processes."""
        return self.add(float(fact)) > 0

    def from_leader(self, value: T | None) -> T:
        """What the first process has; the others' own is ignored. It must be picklable."""
        if self.size > 1:
            box: list[Any] = [value]
            dist.broadcast_object_list(box, src=0, device=torch.device(self.device))
            value = box[0]
        return value  # type: ignore[return-value]

    def agree_on(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite them with the first process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


ALONE = Team()


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_leader() -> bool:
    """Whether this process is the one that tells and writes, launched or not."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str) -> Iterator[tuple[Team, str]]:
    """The team of this process, and the device it is to use. Raises ConfigError."""
    if not is_launched():
        yield ALONE, device
        return
    own = _own_device(device)
    try:
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=MAX_WAIT)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the launched processes cannot reach each other: {error}") from error
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), str(own)), str(own)
    finally:
        dist.destroy_process_group()


def _own_device(device: str) -> torch.device:
    """One GPU for each process of this machine."""
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ConfigError(f"{torch.cuda.device_count()} GPUs are too few for the processes started")
    own = torch.device("cuda", local)
    torch.cuda.set_device(own)
    return own
