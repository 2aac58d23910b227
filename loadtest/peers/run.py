"""Measure finlora beside other servers and beside itself: same machine, base, adapters, prompts.

PEFT always runs. vLLM runs when PEER_VLLM names its executable; llama.cpp when PEER_LLAMA_SERVER
names its executable, PEER_LLAMA_BASE a GGUF file and PEER_LLAMA_ADAPTERS a folder of a0.gguf, ...
What cannot be measured here is skipped with a line that says why.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from finlora.bases.locate import locate
from finlora.bench.machine import machine_facts
from finlora.config import DEFAULT_BASE
from finlora.model import base_spec
from loadtest.peers import report
from loadtest.peers.candidates import Candidate, Material, engine, finlora, found
from loadtest.peers.compare import Comparer
from loadtest.peers.fleet import Fleet
from loadtest.peers.load import DEFAULT_DATA
from loadtest.peers.make_adapters import make_adapters
from loadtest.peers.process import ServerFailedError
from loadtest.peers.prompts import PromptSource, read_contexts
from loadtest.peers.report import Outcome
from loadtest.peers.scenarios import COLD_ADAPTER, KEYS, SCENARIOS, WARM_START, Metric, Scenario
from loadtest.peers.special import COLD_CLIENTS, cold_adapter, warm_start
from loadtest.records import to_json
from loadtest.registries import add_folders, large_registry
from loadtest.subject import end_in_order

REGISTRIES = Path("build/bench-registries")


@dataclass(frozen=True)
class Bench:
    """A prepared run."""

    options: argparse.Namespace
    material: Material
    comparer: Comparer
    registries: dict[str, Path]  # the large ones, by the server that has them
    failed: dict[str, str] = field(default_factory=dict)  # why, by the scenario's key

    def outcomes(self) -> Iterator[Outcome]:
        """Every chosen scenario that can be measured here; those that fail are in `failed`."""
        scenarios = {scenario.key: scenario for scenario in SCENARIOS}
        for key in self.options.scenarios:
            try:
                outcome = self._compared(scenarios[key]) if key in scenarios else self._special(key)
            except ServerFailedError as error:
                self.failed[key] = str(error)
                _say(f"failed {key}: {error}")
                continue
            if outcome is not None:
                yield outcome

    def _compared(self, scenario: Scenario) -> Outcome | None:
        scenario = self._adjusted(scenario)
        absent = [side.label for side in scenario.sides if not self._has(side.server)]
        if absent:
            _say(f"{scenario.key}: without {'; '.join(absent)}")
        first = scenario.sides[0]
        scenario = scenario.with_sides(set(self.comparer.fleet.candidates))
        if first not in scenario.sides:
            return None
        self.comparer.fleet.keep({side.server for side in scenario.sides})
        refusal = self.comparer.refusal(scenario)
        if refusal is not None:
            _say(f"skipped {scenario.key}: {refusal}")
            return None
        return self.comparer.outcome(scenario)

    def _has(self, server: str) -> bool:
        return server in self.comparer.fleet.candidates

    def _adjusted(self, scenario: Scenario) -> Scenario:
        options = self.options
        names = ["rounds", "requests"]
        if scenario.metric is not Metric.LATENCY:  # that is of one client and one token
            names += ["clients", "max_tokens"]
        values = {name: getattr(options, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        scenario = replace(scenario, **given)
        title = scenario.title.format(
            n=options.adapters,
            in_flight=options.in_flight,
            registered=options.registered,
            clients=scenario.clients,
            max_tokens=scenario.max_tokens,
        )
        return replace(scenario, title=title)

    def _special(self, key: str) -> Outcome | None:
        options, fleet = self.options, self.comparer.fleet
        server = COLD_ADAPTER if key == COLD_ADAPTER else "finlora"
        if not self._has(server):
            _say(f"skipped {key}: {server} is not among the chosen servers")
            return None
        fleet.keep({server} if key == COLD_ADAPTER else set())
        if key == WARM_START:
            command = fleet.candidates[server].command
            log = options.output / "warm-start.log"
            runs, requests = options.rounds or 3, options.requests or 256
            return warm_start(command, log, options.data, runs=runs, requests=requests)
        return cold_adapter(
            fleet,
            server,
            self.registries[server],
            self.comparer.source,
            mixed=tuple(folder.name for folder in self.material.adapters),
            rounds=options.rounds or 7,
            probes=options.probes,
            clients=options.clients or COLD_CLIENTS,
        )


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, and keep tables, picture and every figure in the output folder.

    Exit code 1 if a scenario, a server in one, or a request failed, or nothing was measured.
    """
    options = _parser().parse_args(argv)
    options.output = options.output or Path("build/bench-peers") / time.strftime("%Y%m%d-%H%M%S")
    options.output.mkdir(parents=True, exist_ok=True)
    material = prepare(options.model, options.adapters, options.output)
    candidates, registries = _candidates(options, material)
    contexts = read_contexts(options.data)
    _say(
        f"results go to {options.output}",
        f"prompts: the {len(contexts)} rows of {options.data}, each with a made-up company and "
        "other figures every time, so that no prompt is sent twice",
    )
    models = {"finlora": tuple(folder.name for folder in material.adapters)}
    models |= {name: _names(path) for name, path in registries.items()}
    with Fleet(candidates, options.output, _say) as fleet:
        source = PromptSource(contexts)
        comparer = Comparer(fleet, source, models, options.adapters, options.slow_requests, _say)
        bench, outcomes = Bench(options, material, comparer, registries), []
        for outcome in bench.outcomes():
            outcomes.append(outcome)
            publish(outcomes, bench.failed, options.output)
            _say("", outcome.title, "", outcome.text)
    publish(outcomes, bench.failed, options.output)  # with what failed after the last of them
    _say(report.summary([each for outcome in outcomes for each in outcome.comparisons]))
    sound = not any(outcome.errors or outcome.failures for outcome in outcomes)
    return 0 if outcomes and sound and not bench.failed else 1


def prepare(model: str, count: int, output: Path) -> Material:
    """Make the adapters and register them for our own server."""
    base = locate(model)
    _say(f"making {count} adapters for {base}")
    adapters = tuple(make_adapters(base, output / "adapters", count))
    registry = output / "registry"
    add_folders(registry, adapters, base_spec(model))
    threads = psutil.cpu_count(logical=False) or 1
    computes_bf16 = bool(machine_facts()["avx512_bf16"])
    return Material(model, base, adapters, registry, threads, computes_bf16)


def publish(outcomes: list[Outcome], failed: dict[str, str], output: Path) -> None:
    """Write results.json, table.md and requests.png anew after every scenario."""
    comparisons = [each for outcome in outcomes for each in outcome.comparisons]
    tables = (f"## {outcome.title}\n\n{outcome.text}" for outcome in outcomes)
    (output / "table.md").write_text("\n".join([*tables, report.summary(comparisons)]))
    drawn = [outcome for outcome in outcomes if outcome.rounds]
    if drawn:
        report.picture(drawn, output / "requests.png")
    record = {
        "machine": machine_facts(),
        "scenarios": {outcome.key: outcome.record for outcome in outcomes},
        "failed": failed,
        "summary": [asdict(each) for each in comparisons],
    }
    (output / "results.json").write_text(to_json(record, indent=1))


def _candidates(
    options: argparse.Namespace, material: Material
) -> tuple[dict[str, Candidate], dict[str, Path]]:
    """The servers of the chosen scenarios by name, and the large registries of some of them."""
    flags: list[str] = options.server_args.split()
    present, skipped = found(material, flags)
    _say(*skipped)
    present.append(engine(material, flags))
    off = [*flags, "--max-loras", "0"]
    present.append(finlora(material, off, name="finlora-no-adapters"))
    registries = {}
    for scenario, name, count, slots in (
        ("many-in-flight", "finlora-in-flight", options.in_flight, options.in_flight),
        ("many-registered", "finlora-registered", options.registered, 32),
        (COLD_ADAPTER, COLD_ADAPTER, options.registered, 32),
    ):
        if scenario in options.scenarios:
            registries[name] = _large(options, material, count)
            own = ["--max-loras", str(slots), "--max-num-seqs", "96", *flags]
            present.append(finlora(material, own, name=name, registry=registries[name]))
    only = set(options.only.split(",")) if options.only else {c.name for c in present}
    return {c.name: c for c in present if c.name in only}, registries


def _large(options: argparse.Namespace, material: Material, count: int) -> Path:
    _say(f"a registry of {count} adapters (the first time this takes minutes)")
    return large_registry(options.registries, base_spec(options.model), material.adapters, count)


def _names(registry: Path) -> tuple[str, ...]:
    """Adapter names a0, a1, ... in the order of their numbers."""
    names = (path.parent.name for path in registry.glob("*/*/current"))
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-peers ARGS=",
        description=__doc__,
        epilog=f"scenarios: {', '.join(KEYS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scenarios", type=_keys, default=KEYS, help="which, with commas between (default: all)")
    add("--model", default=DEFAULT_BASE, help="embedded base, local folder or hub id")
    add("--only", help="names of the servers to run, with commas between")
    add("--rounds", type=_positive, help="instead of each scenario's own number")
    add("-c", "--clients", type=_positive, help="instead of each scenario's own number")
    add("-n", "--requests", type=_positive, help="timed ones in a round, likewise")
    add("--max-tokens", type=_positive, help="new tokens, likewise")
    add("--slow-requests", type=_positive, default=64, help="timed ones for a slow server (peft)")
    add("--probes", type=_positive, default=40, help="cold adapters in a round")
    add("--adapters", type=_positive, default=4, help="how many adapters are mixed")
    add("--in-flight", type=_positive, default=64, help="adapters of many-in-flight")
    add("--registered", type=_positive, default=1000, help="adapters of many-registered")
    add("--data", type=Path, default=DEFAULT_DATA, help="JSONL file with a `context` in each row")
    add("--server-args", default="", help="further flags for `finlora serve`")
    add("--output", type=Path, help="folder for the results (default: a new one in build/)")
    add("--registries", type=Path, default=REGISTRIES, help="where large registries are kept")
    return parser


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(text.split(","))
    unknown = [key for key in keys if key not in KEYS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {KEYS}")
    return keys


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
