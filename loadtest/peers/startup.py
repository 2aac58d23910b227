"""Time from `make serve` to readiness, and what holds the memory then and after some load.

Run it once before: the first start installs, fetches and quantises. Prints one JSON line per run.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client.parser import text_string_to_metric_families

from loadtest.peers.load import DEFAULT_DATA, Load, measure
from loadtest.peers.process import Server, free_port, get, serving
from loadtest.peers.prompts import fresh_prompts, read_contexts
from loadtest.records import to_json
from loadtest.subject import end_in_order

MEMORY_METRIC = "finlora_memory_bytes"


@dataclass(frozen=True)
class Memory:
    """Resident bytes of the process and what the server says its parts hold."""

    resident_bytes: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Start:
    """One start: idle when ready, then after `requests` spread over all adapters."""

    seconds_to_ready: float
    when_ready: Memory
    requests: int
    errors: int
    after_requests: Memory


def start_once(command: Callable[[int], list[str]], requests: int, data: Path, log: Path) -> Start:
    """Start the command that serves on a port, measure, stop. Raises ServerFailedError."""
    port = free_port()
    with serving(command(port), port=port, ready_path="/ready", log=log) as server:
        idle = memory(server)
        load = Load(models=served_models(server.address), requests=requests)
        prompts = fresh_prompts(read_contexts(data), load.warmup + load.requests)
        result = asyncio.run(measure(f"{server.address}/v1", load, prompts))
        sent = load.warmup + load.requests
        return Start(server.seconds_to_ready, idle, sent, result.errors, memory(server))


def memory(server: Server) -> Memory:
    """What /metrics and the operating system say now. Raises ServerFailedError."""
    return Memory(server.resident_bytes(), memory_parts(get(f"{server.address}/metrics")))


def memory_parts(exposition: str) -> dict[str, int]:
    """Bytes by part, as the server's metrics have them."""
    families = text_string_to_metric_families(exposition)
    samples = (s for family in families for s in family.samples if s.name == MEMORY_METRIC)
    return {sample.labels["part"]: int(sample.value) for sample in samples}


def served_models(address: str) -> tuple[str, ...]:
    """The base and every adapter. Raises ServerFailedError."""
    models = json.loads(get(f"{address}/v1/models"))["data"]
    return tuple(model["id"] for model in models)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--server-args", default="", help="flags for `finlora serve`")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    options = parser.parse_args(argv)
    failed = False

    def make_serve(port: int) -> list[str]:
        return ["make", "serve", f"PORT={port}", f"ARGS={options.server_args}"]

    with TemporaryDirectory() as folder:
        for _ in range(options.runs):
            log = Path(folder) / "server.log"
            start = start_once(make_serve, options.requests, options.data, log)
            sys.stdout.write(to_json(asdict(start)))
            failed = failed or start.errors > 0
    return 1 if failed else 0


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
