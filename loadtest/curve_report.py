"""Curves as a Markdown table and a picture, each point beside its bound."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

UNITS = {"adapters": "requests/s", "rank": "requests/s"}


class Point(Protocol):
    """What a curve is made of."""

    @property
    def curve(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def model(self) -> str: ...
    @property
    def per_second(self) -> float: ...
    @property
    def bound_per_second(self) -> float: ...


def table(points: Sequence[Point]) -> str:
    """One row for each point."""
    lines = ["| curve | x | model | measured | bound | share |", "|---|---|---|---|---|---|"]
    for point in points:
        unit = UNITS.get(point.curve, "tokens/s")
        cells = [
            point.curve,
            f"{point.x:g}" if point.x < 1000 else f"{point.x:.0f}",
            point.model,
            f"{point.per_second:,.1f} {unit}",
            f"{point.bound_per_second:,.1f} {unit}",
            f"{point.per_second / point.bound_per_second:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(points: Sequence[Point], file: Path) -> None:
    """A panel for each curve, both axes logarithmic."""
    curves = {key: list(group) for key, group in groupby(points, lambda point: point.curve)}
    figure = Figure(figsize=(6, 3 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), squeeze=False)[:, 0]
    for axes, (name, members) in zip(panels, curves.items(), strict=True):
        xs = [point.x for point in members]
        axes.loglog(xs, [p.bound_per_second for p in members], "--", color="#888", label="bound")
        axes.loglog(xs, [p.per_second for p in members], "o-", color="#1f3b63", label="measured")
        axes.set_xlabel(name)
        axes.set_ylabel(UNITS.get(name, "tokens/s"))
        axes.legend()
    figure.savefig(file, dpi=120)
