"""What a search found: a line for each step, JSON with the machine's facts, and a curve."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finlora.bench.machine import machine_facts
from loadtest.capacity.finder import Capacity, Goal
from loadtest.capacity.steps import Step, smallest_visible_overload
from loadtest.records import to_json

Latencies = Callable[[Step], tuple[float, float, float]]
JSON, PICTURE = "capacity.json", "capacity.png"
COLUMNS = (
    ("rate/s", 7),
    ("requests", 8),
    ("errors", 6),
    ("first token p50", 15),
    ("p95 (95 % interval)", 21),
    ("p99", 6),
    ("whole p95", 9),
    ("client", 6),
    ("verdict", 0),
)


def header() -> str:
    """What the cells of `line` are; latencies in milliseconds."""
    return _row([name for name, _ in COLUMNS])


def line(step: Step) -> str:
    """One step, to stand below the header."""
    p95 = step.first_token_p95
    return _row(
        [
            f"{step.rate:.2f}",
            str(step.requests),
            str(sum(step.errors.values())),
            _ms(step.first_token_p50),
            f"{_ms(p95.value)} ({_ms(p95.low)} to {_ms(p95.high)})",
            _ms(step.first_token_p99),
            _ms(step.end_p95),
            f"{step.client.machine_share:.1%}",
            ("holds" if step.holds else "fails") + ("" if step.clear else ", close"),
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def verdict(capacity: Capacity, goal: Goal) -> str:
    """The result in words."""
    objective = f"p95 to the first token within {goal.objective_seconds * 1e3:.0f} ms"
    if capacity.rate is None:
        return f"no rate held {objective}"
    failed = [step.rate for step in capacity.steps if not step.holds]
    above = f"{min(failed):.2f}/s did not" if failed else "no higher rate was tried"
    return f"{capacity.rate:.2f} requests/s held {objective}, also with other arrivals; {above}"


def write(capacity: Capacity, goal: Goal, facts: dict[str, Any], folder: Path) -> None:
    """Put capacity.json and capacity.png into the folder; `facts` are the test's own."""
    record = {
        "machine": machine_facts(),
        **facts,
        "goal": asdict(goal),
        "smallest_visible_overload": smallest_visible_overload(goal.timing, goal.objective_seconds),
        **asdict(capacity),
    }
    (folder / JSON).write_text(to_json(record, indent=1), "utf-8")
    picture(capacity, goal, folder / PICTURE)


def picture(capacity: Capacity, goal: Goal, file: Path) -> None:
    """Latency against offered rate: to the first token, and to the end."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for axes, what, latencies in (
        (above, "to the first token, ms", _first_token),
        (below, "to the end of the answer, ms", _end),
    ):
        _curves(axes, capacity.steps, goal.seed, latencies)
        axes.set_ylabel(what)
        if capacity.rate is not None:
            axes.axvline(capacity.rate, color="0.4", linestyle=":", linewidth=1)
    above.axhline(goal.objective_seconds * 1e3, color="0.4", linestyle="--", linewidth=1)
    above.set_title(verdict(capacity, goal), fontsize="medium", wrap=True)
    below.set_xlabel("offered requests per second (open loop; crosses: other arrivals)")
    figure.savefig(file, dpi=120)


def _first_token(step: Step) -> tuple[float, float, float]:
    return step.first_token_p50, step.first_token_p95.value, step.first_token_p99


def _end(step: Step) -> tuple[float, float, float]:
    return step.end_p50, step.end_p95, step.end_p99


def _curves(axes: Axes, steps: Sequence[Step], seed: int, latencies: Latencies) -> None:
    """A line for each percentile of the search, and crosses for what confirmed it."""
    ordered = sorted(steps, key=lambda step: step.rate)
    searched = [step for step in ordered if step.seed == seed]
    confirming = [step for step in ordered if step.seed != seed]
    for index, (name, colour) in enumerate((("p50", "C0"), ("p95", "C1"), ("p99", "C3"))):
        for chosen, style, label in ((searched, "o-", name), (confirming, "x", None)):
            rates = [step.rate for step in chosen]
            shown = [_shown(latencies(step)[index]) for step in chosen]
            axes.plot(rates, shown, style, color=colour, markersize=5, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()


def _shown(seconds: float) -> float:
    """Milliseconds; an infinite latency has no place on the axis."""
    return seconds * 1e3 if math.isfinite(seconds) else math.nan


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if math.isfinite(seconds) else "never"
