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
from pathlib import Path
from typing import Any

from loadtest.peers.connection import Connection
from loadtest.peers.prompts import fresh_prompts, read_contexts

DEFAULT_DATA = Path("examples/news_headlines.jsonl")


class Mix(StrEnum):
    """How requests are spread over the adapters."""

    DISTINCT = "distinct"  # in turn: neighbours never share an adapter
    UNIFORM = "uniform"
    ZIPF = "zipf"  # the i-th adapter gets a share of 1/i


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
    # llama.cpp's server takes adapters by index and scale instead of by model name.
    lora_list: bool = False


@dataclass
class Tally:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One measurement in figures; latencies of failed requests count too."""

    requests_per_second: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    errors: int
    first_error: str | None


def bodies(load: Load, prompts: Iterable[str]) -> Iterator[bytes]:
    """One request body for each prompt. `ignore_eos` makes every server do the same work."""
    rng = random.Random(load.seed)
    weights = [1 / (rank + 1) if load.mix is Mix.ZIPF else 1.0 for rank in range(len(load.models))]
    for index, prompt in enumerate(prompts):
        turn = index % len(load.models)
        if load.mix is not Mix.DISTINCT:
            turn = rng.choices(range(len(load.models)), weights)[0]
        body: dict[str, Any] = {
            "model": load.models[turn],
            "prompt": prompt,
            "max_tokens": load.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        if load.lora_list:
            ids = range(len(load.models))
            body["lora"] = [{"id": id_, "scale": float(id_ == turn)} for id_ in ids]
        yield json.dumps(body).encode()


async def measure(base_url: str, load: Load, prompts: list[str]) -> Result:
    """Warm up with the first prompts, then time the rest. `base_url` ends in /v1."""
    requests = list(bodies(load, prompts))
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection(base_url)) for _ in range(load.clients)
        ]
        await _drive(connections, requests[: load.warmup], load.max_tokens)
        begin = time.perf_counter()
        tally = await _drive(connections, requests[load.warmup :], load.max_tokens)
        return summarise(tally, time.perf_counter() - begin)


async def _drive(connections: list[Connection], requests: list[bytes], max_tokens: int) -> Tally:
    tally = Tally()
    remaining = iter(requests)

    async def client(connection: Connection) -> None:
        for body in remaining:
            begin = time.perf_counter()
            error = await _complaint(connection, body, max_tokens)
            tally.latencies.append(time.perf_counter() - begin)
            if error is not None:
                tally.errors.append(error)

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(client(connection))
    return tally


async def _complaint(connection: Connection, body: bytes, max_tokens: int) -> str | None:
    """What is wrong with the answer: a failure, or fewer tokens than every server must make."""
    try:
        response = await connection.post("/completions", body)
    except (OSError, EOFError) as error:
        return f"{type(error).__name__}: {error}"
    if response.status != 200:
        return f"status {response.status}: {response.body[:200].decode(errors='replace')}"
    made = json.loads(response.body).get("usage", {}).get("completion_tokens")
    return None if made == max_tokens else f"{made} tokens instead of {max_tokens}"


def summarise(tally: Tally, seconds: float) -> Result:
    """Figures of a run that took `seconds`; percentiles by nearest rank."""
    ordered = sorted(tally.latencies)

    def percentile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Result(
        requests_per_second=(len(ordered) - len(tally.errors)) / seconds,
        p50_seconds=percentile(0.5),
        p95_seconds=percentile(0.95),
        p99_seconds=percentile(0.99),
        errors=len(tally.errors),
        first_error=tally.errors[0] if tally.errors else None,
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
    sys.stdout.write(json.dumps(asdict(load) | asdict(result)) + "\n")
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
