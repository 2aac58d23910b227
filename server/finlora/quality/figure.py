"""The arms side by side, as a picture."""

import io

from finlora.quality.findings import QualityFindings


def chart(findings: QualityFindings) -> bytes | None:
    """A PNG of accuracies with their intervals; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    results = findings.results
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(results)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    places = list(range(len(results)))
    values = [100 * r.accuracy.value for r in results]
    below = [100 * (r.accuracy.value - r.accuracy.low) for r in results]
    above = [100 * (r.accuracy.high - r.accuracy.value) for r in results]
    axes.errorbar(values, places, xerr=[below, above], fmt="o", capsize=3, color="tab:blue")
    axes.set_yticks(places, [r.arm.title for r in results])
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy, % of {sum(findings.test_sets.values())} rows (95 % interval)")
    axes.grid(axis="x", alpha=0.3)
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png")
    return image.getvalue()
