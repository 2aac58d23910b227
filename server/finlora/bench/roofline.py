"""What the machine does at most, measured in this process, and what a step takes at the least.

Prefill is compared with arithmetic alone: 2 FLOP for every weight of the linear layers and every
token, at the large-matrix rate. Attention, adapters and lm_head are not counted as work, so the
share is of *useful base* arithmetic and a little stricter than the hardware's own utilisation.

A decode step of B sequences with C tokens of context each has to

    read      weights of the linear layers as stored (and their scales) + lm_head
              + B * C keys and values, each once:            bytes / measured read rate
    compute   2 * B * (linear + lm_head weights) + 4 * B * C * heads * head size * layers:
                                                             FLOP / large-matrix rate

`bound` is the larger of the two (reading and computing overlap perfectly), the strict one;
`serial_bound` is their sum (nothing overlaps). Adapters, norms, sampling and Python are overhead
in both.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from finlora.bases.spec import LinearShape

LARGE_SIDES = (1024, 2048)  # larger ones leave the caches and get slower again
READ_BYTES = 512 * 1024 * 1024
WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured rates of the machine; FLOP and bytes per second."""

    dtype: str
    matmul: float  # square matrices, the best size: the peak that shares are taken of
    matmul_model_shapes: float  # the model's own layers with `rows` rows, one after another
    read: float
    rows: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model's step reads and computes, per step, token or pair of tokens."""

    linear_parameters: int
    head_parameters: int
    linear_bytes: int  # as stored, with scales
    head_bytes: int
    kv_bytes_per_token: int
    attention_flops_per_pair: int  # of one new token with one token of its context, all layers

    def prefill_flops(self, num_tokens: int) -> float:
        """Arithmetic of the linear layers alone."""
        return 2.0 * self.linear_parameters * num_tokens

    def decode_flops(self, batch_size: int, context: float) -> float:
        """One token for every sequence, lm_head and attention included."""
        per_token = 2 * (self.linear_parameters + self.head_parameters)
        return batch_size * (per_token + self.attention_flops_per_pair * context)

    def decode_bytes(self, batch_size: int, context: float) -> float:
        """Weights and lm_head once, keys and values of every sequence once."""
        kv_bytes = batch_size * context * self.kv_bytes_per_token
        return self.linear_bytes + self.head_bytes + kv_bytes


@dataclass(frozen=True, slots=True)
class StepBound:
    """The least time of a decode step in seconds."""

    reading: float
    computing: float

    @property
    def overlapped(self) -> float:
        """Reading and computing at the same time: the roofline."""
        return max(self.reading, self.computing)

    @property
    def serial(self) -> float:
        """One after the other."""
        return self.reading + self.computing


def decode_bound(cost: ModelCost, rates: Rates, batch_size: int, context: float) -> StepBound:
    """The bound of one decode step, as the module defines it."""
    return StepBound(
        reading=cost.decode_bytes(batch_size, context) / rates.read,
        computing=cost.decode_flops(batch_size, context) / rates.matmul,
    )


@torch.inference_mode()
def measure_rates(
    shapes: Iterable[LinearShape],
    *,
    dtype: torch.dtype,
    device: torch.device,
    rows: int = 2048,
    repeats: int = 5,
    large_sides: tuple[int, ...] = LARGE_SIDES,
    read_bytes: int = READ_BYTES,
) -> Rates:
    """Medians of `repeats` after a warm-up, with the threads torch has now."""
    clock = Clock(device, repeats)
    return Rates(
        dtype=str(dtype).removeprefix("torch."),
        matmul=max(_matmul_rate(LinearShape(n, n), n, dtype, clock) for n in large_sides),
        matmul_model_shapes=_model_rate(shapes, rows, dtype, clock),
        read=_read_rate(read_bytes, clock),
        rows=rows,
        num_threads=torch.get_num_threads(),
    )


@dataclass(frozen=True, slots=True)
class Clock:
    """Times work on a device."""

    device: torch.device
    repeats: int

    def seconds(self, work: Callable[[], object]) -> float:
        """Median time of `work`, warmed up."""
        for _ in range(WARM_UPS):
            work()
        return median(self._once(work) for _ in range(self.repeats))

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        begin = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _matmul_rate(shape: LinearShape, rows: int, dtype: torch.dtype, clock: Clock) -> float:
    return 2.0 * rows * shape.in_features * shape.out_features / _matmul(shape, rows, dtype, clock)


def _matmul(shape: LinearShape, rows: int, dtype: torch.dtype, clock: Clock) -> float:
    x = _random(rows, shape.in_features, dtype, clock.device)
    weight = _random(shape.out_features, shape.in_features, dtype, clock.device)
    return clock.seconds(lambda: F.linear(x, weight))


def _model_rate(
    shapes: Iterable[LinearShape], rows: int, dtype: torch.dtype, clock: Clock
) -> float:
    flops = seconds = 0.0
    for shape, count in Counter(shapes).items():
        flops += count * 2.0 * rows * shape.in_features * shape.out_features
        seconds += count * _matmul(shape, rows, dtype, clock)
    return flops / seconds


def _read_rate(num_bytes: int, clock: Clock) -> float:
    # The norm reads every number once and keeps one: the fastest plain read that torch has.
    numbers = torch.ones(num_bytes // 4, device=clock.device)
    return numbers.nbytes / clock.seconds(numbers.norm)


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)
