"""The loss of a run as a picture."""

import io

from finlora.training.config import Metric
from finlora.training.trainer import TrainingHistory

SMOOTHED_SHARE = 0.02  # of the steps, averaged for the line one reads


def loss_curve(history: TrainingHistory, metric: Metric) -> bytes | None:
    """A PNG of training and validation loss; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    numbers = [step.number for step in history.steps]
    losses = [step.loss for step in history.steps]
    axes.plot(numbers, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(numbers, _smoothed(losses), color="tab:blue", label="training")
    if history.evaluations:
        steps = [found.step for found in history.evaluations]
        axes.plot(
            steps, [e.loss for e in history.evaluations], "o-", color="tab:red", label="validation"
        )
        best = history.best(metric)
        if best is not None:
            axes.axvline(best.step, color="grey", linestyle=":", label="kept")
    axes.set(xlabel="step", ylabel="loss per answer token")
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png")
    return image.getvalue()


def _smoothed(losses: list[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    keep = 1 - 1 / max(1.0, SMOOTHED_SHARE * len(losses))
    smoothed, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean = keep * mean + (1 - keep) * loss
        weight = keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed
