"""Measure finlora beside other servers: same machine, base, adapters, prompts, output length.

PEFT always runs. vLLM runs when PEER_VLLM names its executable; llama.cpp when PEER_LLAMA_SERVER
names its executable, PEER_LLAMA_BASE a GGUF file and PEER_LLAMA_ADAPTERS a folder of a0.gguf, ...
Every round starts each server anew and gives it prompts that no round before has used.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from finlora.bases.locate import locate
from finlora.config import DEFAULT_BASE
from loadtest.peers import report
from loadtest.peers.candidates import Candidate, Material, found
from loadtest.peers.load import DEFAULT_DATA, Load, Mix, Result, measure
from loadtest.peers.machine import machine_facts
from loadtest.peers.make_adapters import make_adapters
from loadtest.peers.process import free_port, serving
from loadtest.peers.prompts import fresh_prompts, read_contexts


@dataclass(frozen=True)
class Run:
    """One server in one round."""

    server: str
    round: int
    result: Result
    seconds_to_ready: float
    resident_bytes: int


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, and keep table, picture and every figure in the output folder."""
    options = _parser().parse_args(argv)
    output: Path = options.output or Path("build/bench-peers") / time.strftime("%Y%m%d-%H%M%S")
    output.mkdir(parents=True, exist_ok=True)
    material = prepare(options.model, options.adapters, output)
    candidates, skipped = found(material, options.server_args.split())
    if options.only:
        candidates = [c for c in candidates if c.name in options.only.split(",")]
    _say(*skipped, f"results go to {output}")
    load = Load(
        models=tuple(folder.name for folder in material.adapters),
        mix=options.mix,
        clients=options.clients,
        requests=options.requests,
        warmup=options.warmup,
        max_tokens=options.max_tokens,
    )
    runs = list(
        measure_all(candidates, load, options.rounds, options.slow_requests, options.data, output)
    )
    publish(runs, load, output)
    return 1 if any(run.result.errors for run in runs) else 0


def prepare(model: str, count: int, output: Path) -> Material:
    """Make the adapters and register them for our own server."""
    base = locate(model)
    _say(f"making {count} adapters for {base}")
    adapters = make_adapters(base, output / "adapters", count)
    registry = output / "registry"
    for folder in adapters:
        command = [sys.executable, "-m", "finlora", "adapters", "add", str(folder)]
        command += ["--name", folder.name, "--model", model, "--registry", str(registry)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    threads = psutil.cpu_count(logical=False) or 1
    return Material(model, base, tuple(adapters), registry, threads)


def measure_all(
    candidates: list[Candidate],
    load: Load,
    rounds: int,
    slow_requests: int,
    data: Path,
    output: Path,
) -> Iterable[Run]:
    """All servers in turn, `rounds` times."""
    contexts = read_contexts(data)
    size = load.warmup + load.requests
    for number in range(rounds):
        prompts = fresh_prompts(contexts, size, offset=number * size)
        for candidate in candidates:
            own = replace(load, lora_list=candidate.lora_list)
            if candidate.slow:
                own = replace(own, requests=slow_requests)
            run = measure_one(candidate, own, prompts[: own.warmup + own.requests], number, output)
            _say(f"round {number + 1}: {_line(run)}")
            yield run


def measure_one(
    candidate: Candidate, load: Load, prompts: list[str], number: int, output: Path
) -> Run:
    """Start one server, measure it, end it."""
    port = free_port()
    with serving(
        candidate.command(port),
        port=port,
        ready_path=candidate.ready_path,
        log=output / f"{candidate.name}-{number + 1}.log",
        environment=candidate.environment,
    ) as server:
        result = asyncio.run(measure(f"{server.address}/v1", load, prompts))
        return Run(
            candidate.name, number + 1, result, server.seconds_to_ready, server.resident_bytes()
        )


def publish(runs: list[Run], load: Load, output: Path) -> None:
    """Write results.json, table.md and requests.png, and print the table."""
    rounds: dict[str, list[Result]] = {}
    for run in runs:
        rounds.setdefault(run.server, []).append(run.result)
    title = (
        f"{len(load.models)} adapters ({load.mix}), {load.clients} clients, "
        f"{load.max_tokens} new tokens"
    )
    text = f"{title}\n\n{report.table(rounds)}"
    (output / "table.md").write_text(text)
    report.picture(rounds, title, output / "requests.png")
    record = {
        "machine": machine_facts(),
        "load": asdict(load),
        "runs": [asdict(run) for run in runs],
        "ratios": {name: asdict(ratio) for name, ratio in report.ratios(rounds).items()},
    }
    (output / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    _say("", text)


def _line(run: Run) -> str:
    result = run.result
    error = f", {result.errors} errors, first: {result.first_error}" if result.errors else ""
    return (
        f"{run.server} {result.requests_per_second:.1f} requests/s, "
        f"p50 {result.p50_seconds * 1e3:.0f} ms, ready after {run.seconds_to_ready:.1f} s, "
        f"{run.resident_bytes / 2**20:.0f} MiB resident{error}"
    )


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-peers ARGS=",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=DEFAULT_BASE, help="embedded base, local folder or hub id")
    add("--adapters", type=_positive, default=4, help="how many adapters are mixed")
    add("--mix", type=Mix, choices=list(Mix), default=Load.mix)
    add("--rounds", type=_positive, default=3)
    add("-c", "--clients", type=_positive, default=Load.clients)
    add("-n", "--requests", type=_positive, default=Load.requests, help="timed ones in a round")
    add("--slow-requests", type=_positive, default=64, help="the same for a slow server (peft)")
    add("--warmup", type=int, default=Load.warmup, help="requests before the clock starts")
    add("--max-tokens", type=_positive, default=Load.max_tokens)
    add("--data", type=Path, default=DEFAULT_DATA, help="JSONL file with a `context` in each row")
    add("--only", help="names of the servers to run, with commas between")
    add("--server-args", default="", help="further flags for `finlora serve`")
    add("--output", type=Path, help="folder for the results (default: a new one in build/)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
