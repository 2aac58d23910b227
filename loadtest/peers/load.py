"""Closed-loop load on any OpenAI-style completions server; prints one JSON line.

Every client keeps one connection and one request in flight. The same arguments send the same
requests to every server.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

from finlora.bench.statistics import percentile
from loadtest.peers.connection import Connection, Response
from loadtest.peers.prompts import fresh_prompts, read_contexts
from loadtest.records import to_json

DEFAULT_DATA = Path("examples/news_headlines.jsonl")


class Mix(StrEnum):
    """How requests are spread over the adapters."""

    DISTINCT = "distinct"  # in turn: neighbours never share an adapter
    UNIFORM = "uniform"
    ZIPF = "zipf"  # the i-th adapter gets a share of 1 / i^exponent


@dataclass(frozen=True)
class Load:
    """One measurement: who is asked for what, how often, by how many clients."""

    models: tuple[str, ...]
    mix: Mix = Mix.DISTINCT
    clients: int = 32
    requests: int = 256
    warmup: int = 32
    max_tokens: int = 3
    seed: int = 0
    zipf_exponent: float = 1.0
    # Texts of which the answer must be one (`guided_choice`); empty: exactly max_tokens tokens.
    choices: tuple[str, ...] = ()
    # llama.cpp's server takes adapters by index and scale instead of by model name.
    lora_list: bool = False


@dataclass
class Tally:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)  # of good answers
    errors: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: no answer said


@dataclass(frozen=True)
class Result:
    """One measurement in figures; speed and latencies are those of good answers alone."""

    requests_per_second: float
    p50_seconds: float  # NaN without a good answer, as the other percentiles
    p95_seconds: float
    p99_seconds: float
    errors: int
    first_error: str | None
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that came from a prefix cache; None: the server is silent."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens


def bodies(load: Load, prompts: Iterable[str]) -> Iterator[bytes]:
    """One request body for each prompt. `ignore_eos` makes every server do the same work."""
    for turn, prompt in zip(turns(load), prompts, strict=False):
        body: dict[str, Any] = {
            "model": load.models[turn],
            "prompt": prompt,
            "max_tokens": load.max_tokens,
            "temperature": 0,
        }
        # An answer that is one of the choices ends by itself.
        body |= {"guided_choice": load.choices} if load.choices else {"ignore_eos": True}
        if load.lora_list:
            ids = range(len(load.models))
            body["lora"] = [{"id": id_, "scale": float(id_ == turn)} for id_ in ids]
        yield json.dumps(body).encode()


def turns(load: Load) -> Iterator[int]:
    """Which of the load's models each request asks for, without end."""
    if load.mix is Mix.DISTINCT:
        yield from cycle(range(len(load.models)))
    rng = random.Random(load.seed)
    exponent = load.zipf_exponent if load.mix is Mix.ZIPF else 0.0
    shares = [(rank + 1) ** -exponent for rank in range(len(load.models))]
    cumulative = list(accumulate(shares))
    while True:
        yield rng.choices(range(len(load.models)), cum_weights=cumulative)[0]


async def measure(base_url: str, load: Load, prompts: list[str]) -> Result:
    """Warm up with the first prompts, then time the rest. `base_url` ends in /v1."""
    requests = list(bodies(load, prompts))
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection(base_url)) for _ in range(load.clients)
        ]
        await drive(connections, requests[: load.warmup], load)
        begin = time.perf_counter()
        tally = await drive(connections, requests[load.warmup :], load)
        return summarise(tally, time.perf_counter() - begin)


async def drive(connections: list[Connection], requests: Iterable[bytes], load: Load) -> Tally:
    """Each connection sends the next request when it has the answer to its last."""
    tally = Tally()
    remaining = iter(requests)

    async def client(connection: Connection) -> None:
        for body in remaining:
            await send(connection, body, load, tally)

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(client(connection))
    return tally


async def send(connection: Connection, body: bytes, load: Load, tally: Tally) -> None:
    """Send one request and note in the tally what came of it."""
    begin = time.perf_counter()
    try:
        response = await connection.post("/completions", body)
    except (OSError, EOFError) as failure:
        error: str | None = f"{type(failure).__name__}: {failure}"
    else:
        error = _read(response, load, tally)
    if error is None:
        tally.latencies.append(time.perf_counter() - begin)
    else:
        tally.errors.append(error)


def _read(response: Response, load: Load, tally: Tally) -> str | None:
    """Count the answer's tokens; what is wrong with it, if anything."""
    if response.status != 200:
        return f"status {response.status}: {response.body[:200].decode(errors='replace')}"
    answer = json.loads(response.body)
    usage = answer.get("usage") or {}
    tally.prompt_tokens += usage.get("prompt_tokens", 0)
    cached = _cached_tokens(answer, usage)
    if cached is not None:
        tally.cached_tokens = (tally.cached_tokens or 0) + cached
    if load.choices:
        text = answer["choices"][0]["text"].strip()
        return None if text in load.choices else f"{text!r} is none of the choices"
    made = usage.get("completion_tokens")
    return None if made == load.max_tokens else f"{made} tokens instead of {load.max_tokens}"


def _cached_tokens(answer: dict[str, Any], usage: dict[str, Any]) -> int | None:
    """As OpenAI's usage has it, or as llama.cpp's timings do."""
    details = usage.get("prompt_tokens_details") or {}
    count: int | None = details.get("cached_tokens")
    if count is None:
        count = (answer.get("timings") or {}).get("cache_n")
    return count


def summarise(tally: Tally, seconds: float) -> Result:
    """Figures of a run that took `seconds`; percentiles by nearest rank."""
    return Result(
        requests_per_second=len(tally.latencies) / seconds,
        p50_seconds=percentile(tally.latencies, 0.5),
        p95_seconds=percentile(tally.latencies, 0.95),
        p99_seconds=percentile(tally.latencies, 0.99),
        errors=len(tally.errors),
        first_error=tally.errors[0] if tally.errors else None,
        requests=len(tally.latencies) + len(tally.errors),
        prompt_tokens=tally.prompt_tokens,
        cached_tokens=tally.cached_tokens,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure one server once. Exit code 1 if any request failed."""
    options = _parser().parse_args(argv)
    load = Load(
        models=tuple(options.models.split(",")),
        mix=options.mix,
        clients=options.clients,
        requests=options.requests,
        warmup=options.warmup,
        max_tokens=options.max_tokens,
        lora_list=options.lora_list,
    )
    prompts = fresh_prompts(
        read_contexts(options.data), load.warmup + load.requests, offset=options.offset
    )
    result = asyncio.run(measure(options.url, load, prompts))
    sys.stdout.write(to_json(asdict(load) | asdict(result)))
    return 1 if result.errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers.load", description=__doc__)
    add = parser.add_argument
    add("--url", required=True, help="address that ends in /v1")
    add("--models", required=True, help="model names, with commas between")
    add("--mix", type=Mix, choices=list(Mix), default=Load.mix)
    add("-c", "--clients", type=int, default=Load.clients)
    add("-n", "--requests", type=int, default=Load.requests)
    add("--warmup", type=int, default=Load.warmup, help="requests before the clock starts")
    add("--max-tokens", type=int, default=Load.max_tokens)
    add("--lora-list", action="store_true", help="name adapters as llama.cpp's server wants it")
    add("--data", type=Path, default=DEFAULT_DATA, help="JSONL file with a `context` in each row")
    add("--offset", type=int, default=0, help="prompts that earlier rounds used up")
    return parser


if __name__ == "__main__":
    sys.exit(main())
