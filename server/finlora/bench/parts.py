"""What `finlora bench` measures. Each part takes a warmed engine and gives rows of figures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import psutil

from finlora.adapters.adapter import Adapter
from finlora.bench.driver import Driver, Mix
from finlora.bench.roofline import Rates, decode_bound
from finlora.bench.statistics import Ratio, paired_ratio
from finlora.bench.subject import Subject

BASE_ONLY: Mix = (None,)
Sides = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Uncached prompt tokens per second; every prompt also makes its first token."""

    prompt_tokens: int
    num_prompts: int
    num_adapters: int
    tokens_per_second: float
    share_of_matmul_peak: float  # linear layers' FLOP over the large-matrix rate
    share_of_model_shapes: float  # the same over the rate of the model's own shapes


@dataclass(frozen=True, slots=True)
class Decode:
    """Steps in which every sequence makes one token."""

    batch_size: int
    context_tokens: float  # mean over the timed steps
    num_adapters: int
    step_seconds: float
    tokens_per_second: float
    bound_seconds: float
    share_of_bound: float
    serial_bound_seconds: float
    share_of_serial_bound: float


@dataclass(frozen=True, slots=True)
class Mixed:
    """The same work with adapters and without, in turn; a ratio of 1 means adapters are free."""

    what: str
    num_adapters: int
    rank: int
    base_per_second: float
    mixed_per_second: float
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held by the engine's parts and by the process."""

    parts: dict[str, int]
    process: dict[str, int]


def prefill(
    subject: Subject, rates: Rates, *, prompt_tokens: int, num_prompts: int, mix: Mix, rounds: int
) -> Prefill:
    """Prompts of random tokens, all queued at once; the median round after one to warm up."""
    subject.driver.load(mix)
    seconds = [
        _prefill_seconds(subject.driver, prompt_tokens, num_prompts, mix) for _ in range(rounds + 1)
    ][1:]
    rate = prompt_tokens * num_prompts / median(seconds)
    flops = subject.cost.prefill_flops(1) * rate
    return Prefill(
        prompt_tokens=prompt_tokens,
        num_prompts=num_prompts,
        num_adapters=num_adapters(mix),
        tokens_per_second=rate,
        share_of_matmul_peak=flops / rates.matmul,
        share_of_model_shapes=flops / rates.matmul_model_shapes,
    )


def decode(
    subject: Subject, rates: Rates, *, batch_size: int, context: int, mix: Mix, num_steps: int
) -> Decode:
    """`batch_size` sequences whose context is `context` tokens in the mean; median step."""
    subject.driver.load(mix)
    warm_up = max(2, num_steps // 8)
    prompt_tokens = max(1, context - warm_up - num_steps // 2)
    times = subject.driver.decode_steps(
        batch_size, prompt_tokens, mix, warm_up=warm_up, num_steps=num_steps
    )
    seconds, length = median(times.seconds), fmean(times.contexts)
    bound = decode_bound(subject.cost, rates, batch_size, length)
    return Decode(
        batch_size=batch_size,
        context_tokens=length,
        num_adapters=num_adapters(mix),
        step_seconds=seconds,
        tokens_per_second=batch_size / seconds,
        bound_seconds=bound.overlapped,
        share_of_bound=bound.overlapped / seconds,
        serial_bound_seconds=bound.serial,
        share_of_serial_bound=bound.serial / seconds,
    )


def mixed(
    subject: Subject,
    *,
    mix: Sequence[Adapter],
    rank: int,
    prompt_tokens: int,
    batch_size: int,
    rounds: int,
) -> Iterator[Mixed]:
    """Prefill, decode and whole requests of three tokens: adapters against base only."""
    driver = subject.driver
    driver.load(mix)

    def prefilling(by: Mix) -> float:
        num_tokens = batch_size * prompt_tokens
        return num_tokens / _prefill_seconds(driver, prompt_tokens, batch_size, by)

    def decoding(by: Mix) -> float:
        times = driver.decode_steps(batch_size, prompt_tokens, by, warm_up=2, num_steps=16)
        return batch_size / median(times.seconds)

    def serving(by: Mix) -> float:
        works = driver.random_batch(3 * batch_size, prompt_tokens, 3, by)
        return len(works) / driver.closed_loop(works, batch_size).seconds

    for what, measure in (
        ("prefill tokens", prefilling),
        ("decode tokens", decoding),
        ("requests of 3 tokens", serving),
    ):
        base, adapted = alternate(measure, BASE_ONLY, mix, rounds)
        ratio = paired_ratio(adapted, base)
        yield Mixed(what, num_adapters(mix), rank, median(base), median(adapted), ratio)


def memory(subject: Subject, before: dict[str, int]) -> Memory:
    """What is held now; `before` is the process before the base was loaded."""
    now = process_bytes()
    grown = {f"{name}_before_loading": before[name] for name in now}
    return Memory(parts=subject.engine.stats().memory_bytes, process={**now, **grown})


def process_bytes() -> dict[str, int]:
    """Resident bytes of this process, and those it shares with no other."""
    full = psutil.Process().memory_full_info()
    return {"resident": full.rss, "unique": full.uss}


def num_adapters(mix: Mix) -> int:
    """Different adapters of a mix."""
    return len({adapter.digest for adapter in mix if adapter is not None})


def alternate(measure: Callable[[Mix], float], first: Mix, second: Mix, rounds: int) -> Sides:
    """Both sides once to warm up, then in turn; who begins changes every round."""
    sides = (first, second)
    found: Sides = ([], [])
    for number in range(-1, rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            value = measure(sides[side])
            if number >= 0:
                found[side].append(value)
    return found


def _prefill_seconds(driver: Driver, prompt_tokens: int, num_prompts: int, mix: Mix) -> float:
    return driver.run(driver.random_batch(num_prompts, prompt_tokens, 1, mix))
