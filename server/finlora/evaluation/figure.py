"""The charts of a report: accuracy with intervals, confusion, reliability."""

import io
from typing import TYPE_CHECKING, Literal

from finlora.evaluation.findings import Finding, Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_HEIGHT = 3.4  # inches
WIDTH = 9.0
MAX_ROWS = 24  # models and test sets that get charts of their own


def chart(findings: Findings, form: Literal["png", "svg"]) -> bytes | None:
    """All charts in one picture; None where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    shown = findings.findings[:MAX_ROWS]
    height = 1.2 + 0.35 * len(findings.findings)
    figure = Figure(
        figsize=(WIDTH, height + ROW_HEIGHT * len(shown)), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    _draw(figure, findings, shown, height)
    image = io.BytesIO()
    # The hash that names the parts of an SVG would otherwise differ from run to run.
    with rc_context({"svg.hashsalt": "finlora", "svg.fonttype": "none"}):
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(image, format=form, metadata=metadata)
    return image.getvalue()


def _draw(figure: "Figure", findings: Findings, shown: tuple[Finding, ...], height: float) -> None:
    heights = [height, *[ROW_HEIGHT] * len(shown)]
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    _accuracies(figure.add_subplot(grid[0, :]), findings)
    for i, found in enumerate(shown, start=1):
        _confusion(figure.add_subplot(grid[i, 0]), found)
        _reliability(figure.add_subplot(grid[i, 1]), found)


def _accuracies(axes: "Axes", findings: Findings) -> None:
    names = [f"{f.outcome.model} on {f.outcome.test_set}" for f in findings.findings]
    found = [f.measures.overall["accuracy"] for f in findings.findings]
    places = range(len(found))
    below = [100 * (e.value - e.low) for e in found]
    above = [100 * (e.high - e.value) for e in found]
    axes.barh(places, [100 * e.value for e in found], color="tab:blue", alpha=0.35)
    axes.errorbar(
        [100 * e.value for e in found], list(places), xerr=[below, above],
        fmt="o", color="tab:blue", capsize=3,
    )  # fmt: skip
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy, % (95 % interval)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)


def _confusion(axes: "Axes", found: Finding) -> None:
    labels, counts = found.outcome.labels, found.measures.confusion
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, number in enumerate(row):
            color = "white" if shares[i][j] > 0.6 else "black"
            axes.text(j, i, str(number), ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels) + 1), [*labels, "none"], rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="answered", ylabel="right")
    axes.set_title(f"{found.outcome.model} on {found.outcome.test_set}", fontsize=10)


def _reliability(axes: "Axes", found: Finding) -> None:
    bins = found.measures.reliability
    if not bins:
        axes.set_axis_off()
        return
    most = max(b.num_rows for b in bins)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.scatter(
        [b.confidence for b in bins],
        [b.accuracy for b in bins],
        s=[20 + 180 * b.num_rows / most for b in bins],
        color="tab:blue",
        alpha=0.6,
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"reliability, ECE {found.measures.overall['ece'].value:.3f}", fontsize=10)
    axes.grid(alpha=0.3)
