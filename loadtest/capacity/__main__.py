"""The highest request rate at which p95 to the first token stays within an objective."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.capacity.finder import Capacity, Finder, Goal
from loadtest.capacity.open_loop import OpenLoop, Work
from loadtest.capacity.report import JSON, PICTURE, header, line, verdict, write
from loadtest.capacity.steps import Timing
from loadtest.errors import LoadTestError
from loadtest.headlines import DEFAULT_FILE, headlines, read_prompts
from loadtest.mixes import Mix, asks, check_swap_storm
from loadtest.peers.process import ServerFailedError
from loadtest.server_api import ServerAPI
from loadtest.server_counts import growth
from loadtest.subject import add_subject_options, end_in_order, served, subject_of

OUTPUT = Path("build/capacity")
NONE_HELD, CANNOT_RUN = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Search, and write what was found. 1: no rate held; 2: the search could not be run."""
    options = _parser().parse_args(argv)
    output: Path = options.output or OUTPUT / time.strftime("%Y%m%d-%H%M%S")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with served(subject_of(options), output) as running:
            capacity = find(running.api, options, output)
    except (LoadTestError, ServerFailedError) as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_RUN
    return NONE_HELD if capacity.rate is None else 0


def find(server: ServerAPI, options: argparse.Namespace, output: Path) -> Capacity:
    """Search against a server that is ready. Raises LoadTestError."""
    goal = _goal(options)
    models = tuple(options.models.split(",")) if options.models else server.adapters()
    before = server.scrape()
    if options.mix is Mix.SWAP_STORM:
        check_swap_storm(len(models), before.limit("max_loras"))
    work = _work(models, options)
    _say(f"{len(models)} adapters, {options.mix}; results go to {output}", header())
    loop = OpenLoop(server, work, options.max_tokens)
    finder = Finder(loop, goal, lambda step: _say(line(step)))
    capacity = asyncio.run(_find(finder, loop, len(models)))
    grown = growth(before, server.scrape())
    facts = {
        "workload": {"models": models, "mix": options.mix, "max_tokens": options.max_tokens},
        "server_args": options.server_args,
        "server": before.facts(),
        "server_growth": asdict(grown) | {"hit_rate": grown.hit_rate},
        "date": time.strftime("%Y-%m-%d"),
    }
    write(capacity, goal, facts, output)
    hit = "none" if grown.hit_rate is None else f"{grown.hit_rate:.1%}"
    _say(f"prefix cache: {hit} of {grown.prompt_tokens} prompt tokens", verdict(capacity, goal))
    _say(f"{output / JSON}, {output / PICTURE}")
    return capacity


async def _find(finder: Finder, loop: OpenLoop, num_models: int) -> Capacity:
    # Every adapter has been in a slot before the first step counts.
    await loop.run([0.0] * num_models, patience_seconds=120.0)
    return await finder.find()


def _work(models: tuple[str, ...], options: argparse.Namespace) -> Work:
    """Endless; begins with every adapter once."""
    seed = int.from_bytes(os.urandom(4))  # other prompts every time: no cache knows them
    texts = headlines(read_prompts(options.headlines), seed)
    first = asks(Mix.DISTINCT, models)
    mixed = asks(options.mix, models, seed=options.seed, zipf_exponent=options.zipf_exponent)

    def pairs() -> Iterator[Any]:
        for _ in models:
            yield next(first), next(texts)
        yield from zip(mixed, texts, strict=False)

    return pairs()


def _goal(options: argparse.Namespace) -> Goal:
    timing = Timing(warm_up_seconds=options.warm_up_seconds, window_seconds=options.seconds)
    return Goal(
        objective_seconds=options.first_token_p95_ms / 1e3,
        start=options.start,
        highest=options.max_rate,
        tolerance=options.tolerance,
        seed=options.seed,
        timing=timing,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.capacity", description=__doc__)
    add = parser.add_argument
    add("--first-token-p95-ms", type=_positive, default=500.0, help="the objective")
    add("--max-tokens", type=int, default=8, help="new tokens of every answer")
    good = [mix for mix in Mix if mix is not Mix.BAD_ADAPTERS]
    add("--mix", type=Mix, choices=good, default=Mix.UNIFORM)
    add("--models", help="adapters to ask for, with commas (default: all that are served)")
    add("--zipf-exponent", type=float, default=1.0, help="of --mix zipf")
    add("--headlines", type=Path, default=DEFAULT_FILE)
    add("--start", type=_positive, default=Goal.start, help="first rate tried, requests/s")
    add("--max-rate", type=_positive, default=Goal.highest, help="highest rate tried")
    add("--tolerance", type=_positive, default=Goal.tolerance, help="rates to tell apart, as share")
    add("--seconds", type=_positive, default=Timing.window_seconds, help="window of a step")
    add("--warm-up-seconds", type=_positive, default=Timing.warm_up_seconds)
    add("--seed", type=int, default=Goal.seed, help="of the arrivals")
    add("--output", type=Path, help="folder for the results (default: a new one in build/)")
    add_subject_options(parser)
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{each}\n" for each in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
