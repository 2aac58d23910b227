"""Curves as a Markdown table and a picture, each point beside its bound."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

COLUMNS = 2
SIZE = "million weights in linear layers"
LABELS = {"model size, prefill": f"prefill: {SIZE}", "model size, decode": f"decode: {SIZE}"}
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
    """A panel for each curve, two in a row; x is logarithmic."""
    curves = by_curve(points)
    num_rows = math.ceil(len(curves) / COLUMNS)
    figure = Figure(figsize=(9, 2.8 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, COLUMNS, squeeze=False).flat
    for (name, members), axes in zip(curves.items(), panels, strict=False):
        xs = [point.x for point in members]
        axes.plot(xs, [p.bound_per_second for p in members], "--", color="#888", label="bound")
        axes.plot(xs, [p.per_second for p in members], "o-", color="#1f3b63", label="measured")
        axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:.0f}" for x in xs])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(LABELS.get(name, name))
        axes.set_ylabel(UNITS.get(name, "tokens/s"))
        axes.legend()
    for axes in panels:
        axes.set_axis_off()
    figure.savefig(file, dpi=100)


def by_curve(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each curve in their order; those of two curves may take turns."""
    curves: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(point.curve, []).append(point)
    return curves
