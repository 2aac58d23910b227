"""Rounds of several servers as medians, ratios with intervals, a Markdown table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from loadtest.peers.load import Result

Rounds = Mapping[str, Sequence[Result]]
RESAMPLES = 10_000
CONFIDENCE = 0.95
HEADER = "| server | requests/s (lowest to highest) | p50 | p95 | errors | {} is faster by |"


@dataclass(frozen=True)
class Ratio:
    """How many times faster one server is, with a bootstrap interval over the rounds."""

    value: float
    low: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Ratio:
    """Median of the per-round ratios. The rounds pair up: both servers got the same prompts."""
    ratios = np.array(ours) / np.array(theirs)
    picks = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def speeds(results: Sequence[Result]) -> list[float]:
    """Requests per second of each round."""
    return [result.requests_per_second for result in results]


def ratios(rounds: Rounds) -> dict[str, Ratio]:
    """The first server against each of the others."""
    (_, ours), *others = rounds.items()
    return {name: ratio(speeds(ours), speeds(results)) for name, results in others}


def table(rounds: Rounds) -> str:
    """A Markdown table, one row for each server; the first is compared with the others."""
    against = ratios(rounds)
    lines = [HEADER.format(next(iter(rounds))), "|---|---|---|---|---|---|"]
    for name, results in rounds.items():
        measured = speeds(results)
        cells = [
            name,
            f"{np.median(measured):.1f} ({min(measured):.1f} to {max(measured):.1f})",
            _milliseconds([result.p50_seconds for result in results]),
            _milliseconds([result.p95_seconds for result in results]),
            str(sum(result.errors for result in results)),
            _times(against.get(name)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(rounds: Rounds, title: str, file: Path) -> None:
    """Bars of the median requests per second, with a dot for every round."""
    figure = Figure(figsize=(7, 1.2 + 0.6 * len(rounds)), layout="constrained")
    axes = figure.subplots()
    names = list(rounds)
    axes.barh(names, [float(np.median(speeds(rounds[name]))) for name in names], color="#9db8d9")
    for name in names:
        axes.plot(speeds(rounds[name]), [name] * len(rounds[name]), "o", color="#1f3b63")
    axes.invert_yaxis()
    axes.set_xlabel("requests/s")
    axes.set_title(title, fontsize="medium")
    figure.savefig(file, dpi=150)


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{np.median(seconds) * 1e3:.0f} ms"


def _times(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f})"
