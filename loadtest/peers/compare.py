"""Runs one scenario: its sides take turns, each with prompts that its server has never seen."""

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from loadtest.peers.fleet import Fleet, HTTPTarget
from loadtest.peers.load import Load, Result
from loadtest.peers.process import ServerFailedError
from loadtest.peers.prompts import PromptSource
from loadtest.peers.report import Comparison, Outcome, ratios, sound_rounds, table
from loadtest.peers.scenarios import LABELS, Metric, Scenario, Side, Traffic
from loadtest.server_api import opener

# Servers that wait for their turn stand still; this much of a core is the clock's grain.
MAX_OTHERS_CPU = 0.03


@dataclass(frozen=True)
class Run:
    """One side in one round."""

    side: str
    round: int
    result: Result
    resident_bytes: int
    others_cpu_share: float  # of one core, by the servers that were not measured


@dataclass(frozen=True)
class Comparer:
    """What all scenarios of a run share."""

    fleet: Fleet
    source: PromptSource
    models: Mapping[str, tuple[str, ...]]  # registered adapters by server
    mixed: int  # how many adapters mixed traffic uses
    slow_requests: int
    say: Callable[[str], None]

    def outcome(self, scenario: Scenario) -> Outcome:
        """Measure all rounds, without the sides whose servers fail.

        Raises ServerFailedError where the first side fails, or no other is left.
        """
        failures: dict[str, str] = {}
        runs = list(self._rounds(scenario, failures))
        standing = [side.label for side in scenario.sides if side.server not in failures]
        rounds = {label: [run.result for run in runs if run.side == label] for label in standing}
        found = ratios(rounds, scenario.metric)
        first = scenario.sides[0].label
        what = "latency" if scenario.metric is Metric.LATENCY else "speed"
        return Outcome(
            key=scenario.key,
            title=scenario.title,
            text=table(rounds, scenario.metric),
            comparisons=[
                Comparison(
                    scenario.key,
                    f"{what} of {first} / {name}",
                    ratio,
                    len(sound_rounds(rounds[first], rounds[name])),
                )
                for name, ratio in found.items()
            ],
            record={
                "scenario": asdict(scenario),
                "runs": [asdict(run) for run in runs],
                "failures": failures,
                "ratios": {name: asdict(ratio) for name, ratio in found.items()},
            },
            errors=sum(run.result.errors for run in runs),
            rounds=rounds,
            metric=scenario.metric,
            failures=failures,
        )

    def _rounds(self, scenario: Scenario, failures: dict[str, str]) -> Iterator[Run]:
        """Servers that fail are added to `failures` and not asked again."""
        for side in scenario.sides:
            # Of many adapters the load's usual ones are to be in RAM before the clock starts.
            whole = side.traffic is Traffic.MANY
            short = scenario if whole else replace(scenario, requests=scenario.clients)
            self._attempt(short, side, self._prompts(short, [side])[0], -1, failures)  # to warm up
        for number in range(scenario.rounds):
            turn = scenario.sides if number % 2 == 0 else scenario.sides[::-1]
            for side, prompts in zip(turn, self._prompts(scenario, turn), strict=True):
                run = self._attempt(scenario, side, prompts, number, failures)
                if run is not None:
                    self.say(f"{scenario.key}, round {number + 1}: {_line(run)}")
                    yield run

    def _prompts(self, scenario: Scenario, sides: Sequence[Side]) -> list[list[str]]:
        """A block for each side: the same for different servers, another for the same server."""
        num_blocks = max(Counter(side.server for side in sides).values())
        blocks = self.source.blocks(scenario.clients + scenario.requests, num_blocks)
        used: Counter[str] = Counter()
        chosen = []
        for side in sides:
            chosen.append(blocks[used[side.server]])
            used[side.server] += 1
        return chosen

    def _attempt(
        self,
        scenario: Scenario,
        side: Side,
        prompts: list[str],
        number: int,
        failures: dict[str, str],
    ) -> Run | None:
        """None: the side's server has failed, and the scenario can do without it."""
        if side.server in failures:
            return None
        try:
            return self._measure(scenario, side, prompts, number)
        except ServerFailedError as error:
            failures[side.server] = str(error)
            first, *others = scenario.sides
            if first.server in failures or all(other.server in failures for other in others):
                raise
            self.say(f"{scenario.key}: without {side.label}: {error}")
            return None

    def _measure(self, scenario: Scenario, side: Side, prompts: list[str], number: int) -> Run:
        fleet, target = self.fleet, self.fleet.focus(side.server)
        load = self._load(scenario, side)
        before, begin = fleet.others_cpu_seconds(side.server), time.perf_counter()
        result = target.measure(load, prompts[: load.warmup + load.requests])
        others = fleet.others_cpu_seconds(side.server) - before
        share = others / (time.perf_counter() - begin)
        resident = fleet.resident_bytes(side.server)
        fleet.check(side.server)  # the figures of a server that ended meanwhile are none
        return Run(side.label, number + 1, result, resident, share)

    def _load(self, scenario: Scenario, side: Side) -> Load:
        candidate = self.fleet.candidates[side.server]
        models = self.models.get(side.server, self.models["finlora"])
        load = scenario.load(side, candidate, models, self.mixed)
        if not candidate.slow:
            return load
        requests = min(load.requests, self.slow_requests)
        return replace(load, requests=requests, warmup=min(load.warmup, requests // 4))

    def refusal(self, scenario: Scenario) -> str | None:
        """Why the scenario cannot be measured here, by the server's own words; None: it can.

        Raises ServerFailedError.
        """
        for side in scenario.sides:
            if side.traffic is Traffic.CHOICE:
                return self._choice_refusal(side)
        return None

    def _choice_refusal(self, side: Side) -> str | None:
        target = self.fleet.focus(side.server)
        assert isinstance(target, HTTPTarget)
        body = {"model": self.models["finlora"][0], "prompt": "Answer: ", "max_tokens": 8}
        request = urllib.request.Request(
            f"{target.server.address}/v1/completions",
            json.dumps(body | {"guided_choice": LABELS}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with opener().open(request, timeout=60):
                return None
        except urllib.error.HTTPError as error:
            return f"{side.server} refuses guided_choice: {error.read()[:200].decode()}"
        except OSError as error:
            raise ServerFailedError(f"{side.server} does not answer: {error}") from error


def _line(run: Run) -> str:
    result = run.result
    error = f", {result.errors} errors, first: {result.first_error}" if result.errors else ""
    hits = "" if result.hit_rate is None else f", {result.hit_rate:.0%} of prompt tokens cached"
    busy = ""
    if run.others_cpu_share > MAX_OTHERS_CPU:
        busy = f", the OTHER servers took {run.others_cpu_share:.0%} of a core"
    return (
        f"{run.side}: {result.requests_per_second:.1f} requests/s, "
        f"p50 {result.p50_seconds * 1e3:.0f} ms{hits}, "
        f"{run.resident_bytes / 2**20:.0f} MiB resident{busy}{error}"
    )
