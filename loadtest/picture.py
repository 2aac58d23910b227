"""Draws samples.csv of a locust run: latency against the number of users, and over time.

Not for locust's own process. `python -m loadtest.picture FOLDER` draws one again.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finlora.bench.statistics import percentile
from loadtest.report import SAMPLES
from loadtest.samples import Kind

PICTURE = "latency.png"
# A percentile of fewer samples says nothing.
MIN_SAMPLES = 10
NUM_BINS = 30
COLOURS = {Kind.FIRST_TOKEN: "C1", Kind.REQUEST: "C0"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the file."""

    at_seconds: float
    milliseconds: float
    users: int


Samples = Mapping[Kind, Sequence[Sample]]


def read_samples(file: Path) -> Samples:
    """The samples of each kind, names thrown together."""
    samples: dict[Kind, list[Sample]] = defaultdict(list)
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            sample = Sample(float(row["at_seconds"]), float(row["milliseconds"]), int(row["users"]))
            samples[Kind(row["kind"])].append(sample)
    return samples


def draw(folder: Path) -> Path:
    """Draw the folder's samples; the picture."""
    samples = read_samples(folder / SAMPLES)
    figure = Figure(figsize=(8, 8), layout="constrained")
    by_users, over_time = figure.subplots(2)
    _against_users(by_users, samples)
    _over_time(over_time, samples)
    figure.savefig(folder / PICTURE, dpi=120)
    return folder / PICTURE


def by_users(samples: Iterable[Sample]) -> dict[int, list[float]]:
    """Milliseconds at each number of users that has enough of them, in order."""
    groups: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        groups[sample.users].append(sample.milliseconds)
    return {users: groups[users] for users in sorted(groups) if len(groups[users]) >= MIN_SAMPLES}


def over_time(samples: Sequence[Sample]) -> dict[float, list[Sample]]:
    """The samples of equal stretches of time, by the middle of each."""
    if not samples:
        return {}
    width = max(sample.at_seconds for sample in samples) / NUM_BINS or 1.0
    bins: dict[float, list[Sample]] = defaultdict(list)
    for sample in samples:
        index = min(int(sample.at_seconds / width), NUM_BINS - 1)
        bins[(index + 0.5) * width].append(sample)
    return dict(sorted(bins.items()))


def _against_users(axes: Axes, samples: Samples) -> None:
    for kind, colour in COLOURS.items():
        groups = by_users(samples.get(kind, ()))
        for share, style in ((0.5, "-"), (0.95, "--"), (0.99, ":")):
            values = [percentile(group, share) for group in groups.values()]
            label = f"{kind}, p{share * 100:.0f}"
            axes.plot(list(groups), values, f"o{style}", color=colour, markersize=4, label=label)
    axes.set_xlabel("users")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _over_time(axes: Axes, samples: Samples) -> None:
    for kind, colour in COLOURS.items():
        bins = over_time(samples.get(kind, ()))
        values = [percentile([s.milliseconds for s in group], 0.95) for group in bins.values()]
        axes.plot(list(bins), values, "--", color=colour, label=f"{kind}, p95")
    bins = over_time(samples.get(Kind.REQUEST, ()))
    users = axes.twinx()
    most = [max(sample.users for sample in group) for group in bins.values()]
    users.plot(list(bins), most, color="0.6", drawstyle="steps-mid", label="users")
    users.set_ylabel("users")
    users.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left")


def main(argv: list[str] | None = None) -> int:
    """Draw and print where."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.picture", description=__doc__)
    parser.add_argument("folder", type=Path, help="that holds samples.csv")
    options = parser.parse_args(argv)
    sys.stdout.write(f"{draw(options.folder)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
