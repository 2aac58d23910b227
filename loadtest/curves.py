"""How cost grows: batch size, prompt length, number of adapters, rank, model size.

Every point stands beside its bound, measured in the same process. Writes curves.json, curves.md and
curves.png. The 1.1 B model is a random one in TinyLlama's shape (--large), written layer by layer.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median

from finlora.adapters.registry import AdapterRegistry
from finlora.bases.quiet import quiet_libraries
from finlora.bench.driver import Mix
from finlora.bench.machine import machine_facts
from finlora.bench.parts import BASE_ONLY, alternate, decode, prefill
from finlora.bench.roofline import Rates, measure_rates
from finlora.bench.statistics import paired_ratio
from finlora.bench.subject import Subject, subject, subject_of
from finlora.config import DEFAULT_BASE, Settings, load_settings
from finlora.model import base_spec
from loadtest.curve_report import picture, table
from loadtest.random_base import LARGE_SHAPE, write_base
from loadtest.registries import large_registry

CURVES = ("base", "adapters", "rank", "size")
REGISTRIES = Path("build/bench-registries")
NUM_SLOTS = 32


@dataclass(frozen=True)
class Point:
    """One measured point of a curve; the bound is in the same unit."""

    curve: str
    x: float
    model: str
    per_second: float
    bound_per_second: float


@dataclass(frozen=True)
class Sizes:
    """Where the curves are measured."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    prompt_tokens: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    adapters: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    prefill_tokens: int = 4096  # in one round of prefill
    requests: int = 192  # in one round of the adapter and rank curves
    clients: int = 32
    num_steps: int = 16
    rounds: int = 3


def base_curves(settings: Settings, sizes: Sizes) -> Iterator[Point]:
    """Batch size (decode) and prompt length (prefill) without adapters, beside their bounds."""
    largest = max(sizes.batch_sizes)
    # Room for the longest prompt and its first token, as far as the base goes.
    longest = min(max(sizes.prompt_tokens) + 1, base_spec(settings.model).max_position_embeddings)
    own = settings.model_copy(
        update={
            "max_num_seqs": max(settings.max_num_seqs, largest),
            "max_model_len": settings.max_model_len or longest,
        }
    )
    with subject(own) as made:
        rates = _rates(made)
        for size in sizes.batch_sizes:
            yield _decode_point("batch size", made, rates, sizes, size)
        for length in sizes.prompt_tokens:
            if length < made.engine.max_model_len:
                yield _prefill_point("prompt length", made, rates, sizes, length)


def adapter_curve(settings: Settings, sizes: Sizes, cache: Path) -> Iterator[Point]:
    """Requests of 3 tokens over more and more adapters in turn; base only is the bound."""
    registry = large_registry(cache, base_spec(settings.model), [], max(sizes.adapters))
    own = settings.model_copy(update={"max_loras": NUM_SLOTS})
    with subject_of(own, AdapterRegistry(registry)) as made:
        by_number = sorted(made.adapters, key=lambda adapter: int(adapter.name[1:]))
        for count in sizes.adapters:
            yield _requests_point("adapters", made, sizes, count, by_number[:count])


def rank_curve(settings: Settings, sizes: Sizes, *, num_adapters: int = 4) -> Iterator[Point]:
    """The same requests over four adapters of growing rank."""
    for rank in sizes.ranks:
        own = settings.model_copy(update={"max_lora_rank": max(rank, settings.max_lora_rank)})
        with subject(own, num_adapters=num_adapters, rank=rank) as made:
            yield _requests_point("rank", made, sizes, rank, made.adapters)


def size_curve(settings: Settings, sizes: Sizes) -> Iterator[Point]:
    """Prefill of 64 tokens and decode at batch 32 of one model; x is its linear parameters."""
    with subject(settings) as made:
        rates, millions = _rates(made), made.cost.linear_parameters / 1e6
        for curve, point in (
            ("model size, prefill", _prefill_point("", made, rates, sizes, 64)),
            ("model size, decode", _decode_point("", made, rates, sizes, sizes.clients)),
        ):
            yield replace(point, curve=curve, x=millions)


def _rates(made: Subject) -> Rates:
    shapes = made.engine.spec.linear_layers.values()
    return measure_rates(shapes, dtype=made.dtype, device=made.device)


def _decode_point(curve: str, made: Subject, rates: Rates, sizes: Sizes, batch_size: int) -> Point:
    found = decode(
        made, rates, batch_size=batch_size, context=100, mix=BASE_ONLY, num_steps=sizes.num_steps
    )
    bound = batch_size / found.bound_seconds
    return Point(curve, batch_size, made.engine.spec.name, found.tokens_per_second, bound)


def _prefill_point(curve: str, made: Subject, rates: Rates, sizes: Sizes, length: int) -> Point:
    found = prefill(
        made,
        rates,
        prompt_tokens=length,
        num_prompts=max(1, sizes.prefill_tokens // length),
        mix=BASE_ONLY,
        rounds=sizes.rounds,
    )
    bound = found.tokens_per_second / found.share_of_matmul_peak
    return Point(curve, length, made.engine.spec.name, found.tokens_per_second, bound)


def _requests_point(curve: str, made: Subject, sizes: Sizes, x: int, mix: Mix) -> Point:
    def serving(by: Mix) -> float:
        works = made.driver.random_batch(sizes.requests, 64, 3, by)
        return len(works) / made.driver.closed_loop(works, sizes.clients).seconds

    base, adapted = alternate(serving, BASE_ONLY, mix, sizes.rounds)
    per_second = median(adapted)
    ratio = paired_ratio(adapted, base).value
    return Point(curve, x, made.engine.spec.name, per_second, per_second / ratio)


def main(argv: list[str] | None = None) -> int:
    """Measure the chosen curves and write the three files."""
    quiet_libraries()
    options = _parser().parse_args(argv)
    settings = load_settings(model=options.model, threads=options.threads)
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    options.output.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for curve, measure in _curves(options, settings, sizes):
        for point in measure():
            points.append(point)
            _say(point)
        publish(points, options.output, done=curve)
    return 0


def publish(points: list[Point], output: Path, *, done: str) -> None:
    """Write what there is so far."""
    record = {"machine": machine_facts(), "done": done, "points": [asdict(p) for p in points]}
    (output / "curves.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (output / "curves.md").write_text(table(points), "utf-8")
    picture(points, output / "curves.png")


def _curves(
    options: argparse.Namespace, settings: Settings, sizes: Sizes
) -> Iterator[tuple[str, Callable[[], Iterator[Point]]]]:
    chosen = options.curves
    if "base" in chosen:
        yield "base", lambda: base_curves(settings, sizes)
    if "adapters" in chosen:
        yield "adapters", lambda: adapter_curve(settings, sizes, options.registries)
    if "rank" in chosen:
        yield "rank", lambda: rank_curve(settings, sizes)
    if "size" in chosen:
        yield "size", lambda: size_curve(settings, sizes)
    if options.large:
        folder = write_base(options.large, LARGE_SHAPE, tokenizer_of=options.model)
        large = settings.model_copy(update={"model": str(folder)})
        yield "large", lambda: size_curve(large, sizes)


def _say(point: Point) -> None:
    share = point.per_second / point.bound_per_second
    sys.stdout.write(
        f"{point.curve} {point.x:g}: {point.per_second:,.1f}/s, {share:.1%} of the bound\n"
    )
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.curves", description=__doc__)
    add = parser.add_argument
    add("--curves", type=_names, default=CURVES, help=f"of {', '.join(CURVES)} (default: all)")
    add("--model", default=DEFAULT_BASE, help="embedded base, local folder or hub id")
    add("--threads", type=int, help="CPU threads")
    add("--large", type=Path, metavar="FOLDER", help="also the 1.1 B model, kept there (2.2 GB)")
    add("--registries", type=Path, default=REGISTRIES, help="where large registries are kept")
    default = Path("build/curves") / time.strftime("%Y%m%d-%H%M%S")
    add("--output", type=Path, default=default, help="folder for the results")
    for field in fields(Sizes):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        add(flag, type=_numbers if kind is tuple else int, default=field.default)
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else ()
    unknown = [name for name in names if name not in CURVES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
