"""Which adapter each request asks for, and which refusal is the right answer where it is bad."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, cycle, repeat

from loadtest.errors import LoadTestError

MAX_NAME = 256  # of the field `model`


class Mix(StrEnum):
    """How requests are spread over the adapters."""

    DISTINCT = "distinct"  # in turn: neighbours never share an adapter
    UNIFORM = "uniform"
    ZIPF = "zipf"  # the i-th adapter gets a share of 1 / i^exponent
    IDENTICAL = "identical"  # the first adapter only
    SWAP_STORM = "swap-storm"  # in turn over more adapters than slots
    BAD_ADAPTERS = "bad-adapters"  # every second request names one that cannot be served


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error that a bad request must get."""

    kind: str
    status: int
    code: str


UNKNOWN = Refusal("unknown adapter", 404, "model_not_found")
MALFORMED = Refusal("malformed name", 400, "invalid_value")
BROKEN = Refusal("broken adapter", 500, "adapter_load_failed")


@dataclass(frozen=True, slots=True)
class Ask:
    """A model name; `refusal` is set where it must not be served."""

    model: str
    refusal: Refusal | None = None


def asks(
    mix: Mix,
    models: Sequence[str],
    *,
    broken: Sequence[str] = (),
    seed: int = 0,
    zipf_exponent: float = 1.0,
) -> Iterator[Ask]:
    """Without end; the same arguments give the same sequence. Raises LoadTestError."""
    if not models:
        raise LoadTestError("there is no adapter to ask for")
    rng = random.Random(seed)
    if mix is Mix.BAD_ADAPTERS:
        return _bad_between_good(models, broken, rng)
    return map(Ask, _names(mix, models, rng, zipf_exponent))


def check_swap_storm(num_models: int, num_slots: int | None) -> None:
    """Raises LoadTestError where adapters would simply stay in their slots.

    In turn over more adapters than slots, the next one is always the one that was put out last:
    the worst order there is for "least recently used".
    """
    if num_slots is not None and num_models <= num_slots:
        raise LoadTestError(
            f"a swap storm needs more adapters than slots: {num_models} adapters, {num_slots} slots"
        )


def _names(
    mix: Mix, models: Sequence[str], rng: random.Random, zipf_exponent: float
) -> Iterator[str]:
    match mix:
        case Mix.IDENTICAL:
            return repeat(models[0])
        case Mix.UNIFORM:
            return _drawn(models, 0.0, rng)
        case Mix.ZIPF:
            return _drawn(models, zipf_exponent, rng)
    return cycle(models)


def _drawn(models: Sequence[str], exponent: float, rng: random.Random) -> Iterator[str]:
    shares = [rank**-exponent for rank in range(1, len(models) + 1)]
    cumulative = list(accumulate(shares))
    while True:
        yield rng.choices(models, cum_weights=cumulative)[0]


def _bad_between_good(
    models: Sequence[str], broken: Sequence[str], rng: random.Random
) -> Iterator[Ask]:
    good, bad = cycle(models), _bad(models, broken, rng)
    while True:
        yield Ask(next(good))
        yield next(bad)


def _bad(models: Sequence[str], broken: Sequence[str], rng: random.Random) -> Iterator[Ask]:
    """Names that were never registered, versions that never were, no names at all, broken files."""
    while True:
        number = rng.randrange(10**9)
        yield Ask(f"no-such-adapter-{number}", UNKNOWN)
        # 0 in front: a version of these very digits is possible, and will not happen
        yield Ask(f"{rng.choice(models)}@{number:064x}", UNKNOWN)
        yield Ask(f"../{number}/{rng.choice(models)}", UNKNOWN)
        yield Ask("é\u202e\x00" * rng.randint(1, 20), UNKNOWN)
        yield Ask("a" * (MAX_NAME + rng.randint(1, 2000)), MALFORMED)
        for name in broken:
            yield Ask(name, BROKEN)
