"""The two scenarios that are not sides taking turns: cold adapters, and the start."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

from finlora.adapters.registry import AdapterRegistry
from loadtest.peers.cold import ColdRounds, measure_cold
from loadtest.peers.fleet import Fleet, HTTPTarget
from loadtest.peers.load import Load
from loadtest.peers.prompts import PromptSource
from loadtest.peers.report import Comparison, Outcome
from loadtest.peers.scenarios import COLD_ADAPTER, WARM_START
from loadtest.peers.startup import Start, start_once

COLD_CLIENTS = 32


def cold_adapter(
    fleet: Fleet,
    server: str,
    registry: Path,
    source: PromptSource,
    *,
    mixed: tuple[str, ...],
    rounds: int,
    probes: int,
    clients: int,
) -> Outcome:
    """Adapters that come from disk under load. `server` must not have served them before.

    Raises ServerFailedError.
    """
    target = fleet.focus(server)
    assert isinstance(target, HTTPTarget)
    opened = AdapterRegistry(registry)
    names = sorted(set(opened.names()) - set(mixed), key=lambda name: (len(name), name))
    probes = min(probes, len(names) // rounds)
    found = measure_cold(
        f"{target.server.address}/v1",
        opened,
        names[-rounds * probes :],
        Load(models=mixed, clients=clients),
        source,
        rounds=rounds,
    )
    fleet.check(server)
    tail, what = found.others_ratio(0.99), "p99 of the others, with / without cold loads"
    return Outcome(
        key=COLD_ADAPTER,
        title=f"a cold adapter every quarter of a second, {clients} other clients",
        text=_cold_table(found),
        comparisons=[] if tail is None else [Comparison(COLD_ADAPTER, what, tail, found.num_sound)],
        record={"rounds": asdict(found), "others_p99_ratio": tail and asdict(tail)},
        errors=len(found.errors),
        rounds={},
    )


def warm_start(
    command: Callable[[int], list[str]], log: Path, data: Path, *, runs: int, requests: int
) -> Outcome:
    """From the command to readiness with everything cached, and the memory then.

    Raises ServerFailedError.
    """
    starts = [start_once(command, requests, data, log) for _ in range(runs)]
    return Outcome(
        key=WARM_START,
        title="warm start: command to ready",
        text=_start_table(starts),
        comparisons=[],
        record={"starts": [asdict(start) for start in starts]},
        errors=sum(start.errors for start in starts),
        rounds={},
    )


def _cold_table(found: ColdRounds) -> str:
    lines = ["| what | p50 | p99 | number |", "|---|---|---|---|"]
    for what, phases in (("warm", found.warm), ("cold", found.cold)):
        cells = (_milliseconds(found.probe_seconds(phases, share)) for share in (0.5, 0.99))
        count = sum(len(phase.probes) for phase in phases)
        lines.append(f"| one token of a {what} adapter | {' | '.join(cells)} | {count} |")
    for what, phases in (("warm", found.warm), ("cold", found.cold)):
        pooled = [seconds for phase in phases for seconds in phase.others]
        ordered = sorted(pooled) or [math.nan]
        cells = (_milliseconds(ordered[int(share * (len(ordered) - 1))]) for share in (0.5, 0.99))
        lines.append(f"| the others meanwhile, {what} | {' | '.join(cells)} | {len(pooled)} |")
    for tier, way in (("ram", "disk to RAM"), ("slot", "RAM to slot")):
        num_loads = sum(each.get(f"{tier}_count", 0.0) for each in found.load_seconds)
        seconds = sum(each.get(f"{tier}_sum", 0.0) for each in found.load_seconds)
        mean = _milliseconds(seconds / num_loads) if num_loads else "?"
        lines.append(f"| {way}, by the server's metrics, mean | {mean} |  | {num_loads:.0f} |")
    if found.errors:
        lines.append(f"| errors, first: {found.errors[0]} |  |  | {len(found.errors)} |")
    return "\n".join(lines) + "\n"


def _start_table(starts: list[Start]) -> str:
    seconds = [start.seconds_to_ready for start in starts]
    resident = [start.when_ready.resident_bytes / 2**20 for start in starts]
    after = [start.after_requests.resident_bytes / 2**20 for start in starts]
    return (
        "| starts | seconds to ready | resident when ready | resident after load |\n"
        "|---|---|---|---|\n"
        f"| {len(starts)} | {median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | "
        f"{median(resident):.0f} MiB | {median(after):.0f} MiB |\n"
    )


def _milliseconds(seconds: float) -> str:
    return "none" if math.isnan(seconds) else f"{seconds * 1e3:.1f} ms"
