"""What a request for an adapter on disk costs, itself and the others.

Clients keep four adapters busy in a closed loop. A prober sends one request every quarter of a
second: in one phase each for an adapter that was never asked for, its file put out of the page
cache; in the other phase for one of the four. In both phases nothing of the prober's prompts is in
the prefix cache: they carry the same work, and only the loads differ.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import islice

from prometheus_client.parser import text_string_to_metric_families

from finlora.adapters.registry import AdapterRegistry
from finlora.bench.statistics import Ratio, percentile, pooled_ratio
from finlora.bench.swap import forget_file
from loadtest.peers.connection import Connection
from loadtest.peers.load import Load, Tally, bodies, send
from loadtest.peers.process import get
from loadtest.peers.prompts import PromptSource

PROBE_SECONDS = 0.25
METRIC = "finlora_adapter_load_seconds"


@dataclass(frozen=True)
class Phase:
    """Latencies in seconds of good answers: the prober's, and those of everybody else."""

    probes: tuple[float, ...]
    others: tuple[float, ...]
    errors: tuple[str, ...]


@dataclass
class ColdRounds:
    """All rounds: cold and warm phases in pairs, and the server's own account of its loads."""

    cold: list[Phase] = field(default_factory=list)
    warm: list[Phase] = field(default_factory=list)
    load_seconds: list[dict[str, float]] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What failed in any phase."""
        return [error for phase in (*self.cold, *self.warm) for error in phase.errors]

    @property
    def num_sound(self) -> int:
        """How many rounds were without errors."""
        return len(self._sound())

    def others_ratio(self, share: float) -> Ratio | None:
        """The others' latency percentile in cold phases against warm ones, over the sound rounds.

        None: there are none.
        """
        sound = self._sound()
        if not sound:
            return None
        return pooled_ratio(
            [cold.others for cold, _ in sound], [warm.others for _, warm in sound], share
        )

    def _sound(self) -> list[tuple[Phase, Phase]]:
        pairs = zip(self.cold, self.warm, strict=True)
        return [(cold, warm) for cold, warm in pairs if not cold.errors and not warm.errors]

    def probe_seconds(self, phases: list[Phase], share: float) -> float:
        """A percentile of the prober's latencies over all rounds."""
        return percentile([seconds for phase in phases for seconds in phase.probes], share)


async def run_phase(
    base_url: str, load: Load, asked: list[str], source: PromptSource, interval: float
) -> Phase:
    """Probe for the adapters `asked` while `load.clients` clients go round `load.models`."""
    others, probes = Tally(), Tally()
    finished = asyncio.Event()

    def until_finished() -> Iterator[bytes]:
        for body in bodies(load, source.endless()):
            if finished.is_set():
                return
            yield body

    requests = until_finished()

    async def client(connection: Connection) -> None:
        for body in requests:
            await send(connection, body, load, others)

    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection(base_url)) for _ in range(load.clients + 1)
        ]
        async with asyncio.TaskGroup() as group:
            for connection in connections[1:]:
                group.create_task(client(connection))
            await _probe(connections[0], load, asked, source, interval, probes)
            finished.set()
    errors = (*others.errors, *probes.errors)
    return Phase(tuple(probes.latencies), tuple(others.latencies), errors)


async def _probe(
    connection: Connection,
    load: Load,
    asked: list[str],
    source: PromptSource,
    interval: float,
    tally: Tally,
) -> None:
    own = replace(load, models=tuple(asked), max_tokens=1)
    clock = asyncio.get_running_loop()
    due = clock.time() + interval
    for body in bodies(own, islice(source.endless_apart(), len(asked))):
        await asyncio.sleep(max(0.0, due - clock.time()))
        due = clock.time() + interval
        await send(connection, body, own, tally)


def measure_cold(
    base_url: str,
    registry: AdapterRegistry,
    cold_names: list[str],
    load: Load,
    source: PromptSource,
    *,
    rounds: int,
    interval: float = PROBE_SECONDS,
) -> ColdRounds:
    """`rounds` pairs of phases; the cold names are shared out among the rounds, each used once."""
    found = ColdRounds()
    size = len(cold_names) // rounds
    warm_names = [load.models[i % len(load.models)] for i in range(size)]
    asyncio.run(run_phase(base_url, load, warm_names, source, interval))  # to warm up
    for number in range(rounds):
        names = cold_names[number * size : (number + 1) * size]
        for name in names:
            forget_file(registry.resolve(name))
        before = load_times(base_url)
        found.cold.append(asyncio.run(run_phase(base_url, load, names, source, interval)))
        found.load_seconds.append(_difference(before, load_times(base_url)))
        found.warm.append(asyncio.run(run_phase(base_url, load, warm_names, source, interval)))
    return found


def load_times(base_url: str) -> dict[str, float]:
    """Number and seconds of loads by tier, as /metrics has them now: ram_count, ram_sum, ...

    Raises ServerFailedError.
    """
    exposition = get(base_url.removesuffix("/v1") + "/metrics")
    families = text_string_to_metric_families(exposition)
    samples = [s for family in families for s in family.samples if s.name.startswith(METRIC)]
    return {
        f"{sample.labels['tier']}{sample.name.removeprefix(METRIC)}": sample.value
        for sample in samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
