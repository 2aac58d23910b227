"""Our trainer beside a plain PEFT + transformers Trainer loop: same machine, rows, order, start.

The loops take turns, each run in a process of its own. The plain loop gets its best batch size and
attention, found by short runs first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

from finlora.bench.machine import machine_facts
from finlora.config import DEFAULT_BASE
from finlora.threads import usable_cores
from loadtest.subject import end_in_order
from loadtest.training import report
from loadtest.training.measurement import Measurement

DEFAULT_DATA = Path("examples/news_headlines.jsonl")
PROBE_STEPS = 3
ATTENTIONS = ("sdpa", "eager")
LOSSES_DIFFER, CANNOT_RUN = 1, 2


class RunFailedError(Exception):
    """A process ended with an error, which stands above, or nothing is left to compare with."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, keep table, picture and every figure.

    Exit code 1: the losses differ; 2: a loop could not be run.
    """
    options = _parser().parse_args(argv)
    output = options.output or Path("build/bench-train") / time.strftime("%Y%m%d-%H%M%S")
    output.mkdir(parents=True, exist_ok=True)
    _say(f"results go to {output}")
    try:
        rounds, best = _measured(options, output)
    except RunFailedError as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_RUN
    publish(rounds, best, options, output)
    return 0 if report.losses_agree(rounds) else LOSSES_DIFFER


def _measured(
    options: argparse.Namespace, output: Path
) -> tuple[dict[str, list[Measurement]], list[str]]:
    """All rounds, and the flags of the plain loop in them. Raises RunFailedError."""
    material = _make_material(options, output)
    best = _best_plain(options, material, output)
    _say(f"the plain loop runs best with {' '.join(best)}")
    rounds: dict[str, list[Measurement]] = {"finlora": [], "plain": []}
    for number in range(options.rounds):
        # Who begins alternates, so that a drift of the machine favours nobody.
        for key in ("finlora", "plain") if number % 2 == 0 else ("plain", "finlora"):
            flags = best if key == "plain" else []
            measured = measure(key, material, output / f"{key}-{number}.json", flags)
            rounds[key].append(measured)
            _say(f"round {number + 1}: {key} {measured.tokens_per_second:.0f} tokens/s")
    return rounds, best


def publish(
    rounds: report.Rounds, plain_flags: list[str], options: argparse.Namespace, output: Path
) -> None:
    """Table, picture and results.json."""
    text = report.table(rounds)
    _say("", text)
    (output / "table.md").write_text(text, "utf-8")
    report.picture(rounds, output / "training.png")
    record = {
        "machine": machine_facts(),
        "date": time.strftime("%Y-%m-%d"),
        "options": {key: str(value) for key, value in vars(options).items()},
        "plain_flags": plain_flags,
        "ratio": asdict(report.ratio(rounds)),
        "loss_differences": report.loss_differences(rounds),
        "rounds": {key: [asdict(m) for m in measured] for key, measured in rounds.items()},
    }
    (output / "results.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def measure(loop: str, material: Path, file: Path, flags: list[str]) -> Measurement:
    """One run of `finlora` or `plain`. Raises RunFailedError."""
    module = {"finlora": "our_loop", "plain": "plain_loop"}[loop]
    _run(f"loadtest.training.{module}", [str(material), str(file), *flags])
    return Measurement(**json.loads(file.read_bytes()))


def _make_material(options: argparse.Namespace, output: Path) -> Path:
    arguments = [str(output), "--model", options.model, "--data", str(options.data)]
    arguments += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    _run("loadtest.training.material", [*arguments, "--valid", str(options.valid)])
    return output / "material.json"


def _best_plain(options: argparse.Namespace, material: Path, output: Path) -> list[str]:
    """Flags of the fastest plain loop in short runs. Raises RunFailedError where none runs."""
    sizes = [size for size in options.plain_batch_sizes if options.batch_size % size == 0]
    speeds: dict[tuple[str, ...], float] = {}
    for size, attention in product(sizes, ATTENTIONS):
        flags = ("--batch-size", str(size), "--attention", attention)
        what = f"the plain loop, {size} rows at once, {attention}"
        file = output / f"probe-{size}-{attention}.json"
        try:
            probe = measure("plain", material, file, [*flags, "--steps", str(PROBE_STEPS)])
        except RunFailedError as error:
            # Many rows, with all their attention weights, may take more memory than there is.
            _say(f"left out {what}: {error}")
            continue
        speeds[flags] = probe.tokens_per_second
        _say(f"{what}: {speeds[flags]:.0f} tokens/s")
    if not speeds:
        raise RunFailedError("no way of the plain loop could be run")
    fastest, _ = max(speeds.items(), key=lambda item: item[1])
    return list(fastest)


def _run(module: str, arguments: list[str]) -> None:
    threads = os.environ.get("OMP_NUM_THREADS", str(usable_cores()))
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}, check=False)
    if done.returncode:
        raise RunFailedError(f"{module} ended with {done.returncode}")


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-train ARGS=", description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_BASE, help="embedded base, local folder or hub id")
    add("--data", type=Path, default=DEFAULT_DATA, help="rows as FinLoRA's JSON lines")
    add("--rounds", type=_positive, default=3)
    add("--steps", type=_positive, default=12, help="optimizer steps of a run")
    add("--batch-size", type=_positive, default=16, help="rows of an optimizer step")
    add("--plain-batch-sizes", type=_sizes, default=[4, 8, 16], help="rows at once to try, 4,8,16")
    add("--valid", type=_positive, default=48, help="validation rows")
    add("--output", type=Path, help="folder for the results (default: a new one in build/)")
    return parser


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
