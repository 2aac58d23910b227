"""Rounds of several sides as medians, ratios with intervals, Markdown tables and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from finlora.bench.statistics import Ratio, paired_ratio
from loadtest.peers.load import Result
from loadtest.peers.scenarios import Metric

Rounds = Mapping[str, Sequence[Result]]
HEADER = (
    "| side | requests/s (lowest to highest) | p50 | p95 | prompt tokens | cached | errors "
    "| first side against it |"
)
SUMMARY_HEADER = "| scenario | compared | ratio | 95 % interval | rounds |"


@dataclass(frozen=True)
class Comparison:
    """One ratio of one scenario, as the summary shows it."""

    scenario: str
    compared: str
    ratio: Ratio
    rounds: int


@dataclass(frozen=True)
class Outcome:
    """What one scenario gives the report."""

    key: str
    title: str
    text: str  # Markdown, without the title
    comparisons: list[Comparison]
    record: dict[str, Any]
    errors: int
    rounds: Rounds
    metric: Metric = Metric.THROUGHPUT
    # How servers failed whose sides were dropped, by the servers' names.
    failures: Mapping[str, str] = field(default_factory=dict)


def values(results: Sequence[Result], metric: Metric) -> list[float]:
    """The measured figure of each round."""
    if metric is Metric.LATENCY:
        return [result.p50_seconds * 1e3 for result in results]
    return [result.requests_per_second for result in results]


def ratios(rounds: Rounds, metric: Metric = Metric.THROUGHPUT) -> dict[str, Ratio]:
    """The first side against each of the others with which it has sound rounds."""
    (_, ours), *others = rounds.items()
    paired = {name: sound_rounds(ours, results) for name, results in others}
    return {
        name: paired_ratio(*(values(side, metric) for side in zip(*pairs, strict=True)))
        for name, pairs in paired.items()
        if pairs
    }


def sound_rounds(first: Sequence[Result], second: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Rounds without errors: one that refuses is quick, and what it does not compute is free."""
    pairs = zip(first, second, strict=True)
    return [(one, other) for one, other in pairs if not one.errors and not other.errors]


def table(rounds: Rounds, metric: Metric = Metric.THROUGHPUT) -> str:
    """A Markdown table, one row for each side."""
    against = ratios(rounds, metric)
    lines = [HEADER, "|---|---|---|---|---|---|---|---|"]
    for name, results in rounds.items():
        speeds = values(results, Metric.THROUGHPUT)
        cells = [
            name,
            f"{np.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})",
            _milliseconds([result.p50_seconds for result in results]),
            _milliseconds([result.p95_seconds for result in results]),
            _prompt_tokens(results),
            _cached(results),
            str(sum(result.errors for result in results)),
            _times(against.get(name)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(comparisons: Sequence[Comparison]) -> str:
    """Every ratio of the run in one Markdown table."""
    lines = [SUMMARY_HEADER, "|---|---|---|---|---|"]
    for each in comparisons:
        interval = f"{number(each.ratio.low)} to {number(each.ratio.high)}"
        cells = [each.scenario, each.compared, number(each.ratio.value), interval, str(each.rounds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(outcomes: Sequence[Outcome], file: Path) -> None:
    """Bars of the medians with a dot for every round, a panel for each scenario."""
    heights = [0.9 + 0.45 * len(outcome.rounds) for outcome in outcomes]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    panels = figure.subplots(len(outcomes), height_ratios=heights, squeeze=False)[:, 0]
    for axes, outcome in zip(panels, outcomes, strict=True):
        for name, results in outcome.rounds.items():
            measured = _numbers(values(results, outcome.metric))
            axes.barh([name], [_median(measured) or 0.0], color="#9db8d9")
            axes.plot(measured, [name] * len(measured), "o", color="#1f3b63", markersize=4)
        axes.invert_yaxis()
        axes.set_xlabel(str(outcome.metric))
        axes.set_title(outcome.title, fontsize="medium")
    figure.savefig(file, dpi=120)


def number(ratio: float) -> str:
    """Three digits that matter: 12.3, 1.23, 0.987."""
    return f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}" if ratio >= 1.1 else f"{ratio:.3f}"


def _prompt_tokens(results: Sequence[Result]) -> str:
    requests = sum(result.requests for result in results)
    tokens = sum(result.prompt_tokens for result in results)
    return f"{tokens / requests:.1f}" if requests and tokens else "?"


def _cached(results: Sequence[Result]) -> str:
    rates = [result.hit_rate for result in results if result.hit_rate is not None]
    return f"{np.median(rates):.0%}" if rates else "not told"


def _milliseconds(seconds: Sequence[float]) -> str:
    middle = _median(_numbers(seconds))
    return "none" if middle is None else f"{middle * 1e3:.0f} ms"


def _numbers(values: Sequence[float]) -> list[float]:
    """Without the rounds that had no good answer, whose latencies are NaN."""
    return [value for value in values if not math.isnan(value)]


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _times(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    return f"{number(ratio.value)} ({number(ratio.low)} to {number(ratio.high)})"
