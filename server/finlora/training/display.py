"""How a run looks to whoever watches it: a live panel on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from finlora.training.evaluation import Evaluation
from finlora.training.trainer import Step

SECONDS_BETWEEN_LINES = 10
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is to see after a step."""

    step: Step
    seconds_left: float
    memory_bytes: int
    evaluation: Evaluation | None

    @property
    def tokens_per_second(self) -> float:
        """Of this step."""
        return self.step.num_tokens / self.step.seconds


class View(Protocol):
    """What a run is shown on."""

    def line(self, text: str) -> None:
        """A sentence that stays."""

    def step(self, snapshot: Snapshot) -> None:
        """The newest figures."""

    def close(self) -> None:
        """Nothing more is shown."""


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class PlainView:
    """Lines: the first and the last step, and one every few seconds."""

    def __init__(self, write: Callable[[str], None] = _to_stderr) -> None:
        self.line = write
        self._last_line = 0.0

    def step(self, snapshot: Snapshot) -> None:
        """A line now and then."""
        step, now = snapshot.step, time.monotonic()
        if 1 < step.number < step.num_steps and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        self.line(
            f"step {step.number}/{step.num_steps}  loss {step.loss:.4f}  "
            f"lr {step.learning_rate:.2e}  {snapshot.tokens_per_second:.0f} tokens/s  "
            f"{snapshot.memory_bytes / GIB:.1f} GiB  "
            f"about {snapshot.seconds_left / 60:.1f} min left"
        )

    def close(self) -> None:
        """Lines need no end."""


class LiveView:
    """A panel that stays at the bottom; sentences scroll above it."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)
        self._live.start()

    def line(self, text: str) -> None:
        """Above the panel."""
        self._live.console.print(text, highlight=False, markup=False)

    def step(self, snapshot: Snapshot) -> None:
        """Redraw."""
        step = snapshot.step
        bar = ProgressBar(total=step.num_steps, completed=step.number)
        self._live.update(Group(bar, _figures(snapshot)), refresh=step.number == step.num_steps)

    def close(self) -> None:
        """Leave the last figures on the screen."""
        self._live.stop()


def choose_view(*, plain: bool) -> View:
    """Live on a terminal, unless lines are asked for."""
    console = Console(stderr=True)
    return PlainView() if plain or not console.is_terminal else LiveView(console)


def _figures(snapshot: Snapshot) -> Table:
    step, evaluation = snapshot.step, snapshot.evaluation
    cells = {
        "step": f"{step.number}/{step.num_steps}",
        "loss": f"{step.loss:.4f}",
        "lr": f"{step.learning_rate:.2e}",
        "tokens/s": f"{snapshot.tokens_per_second:.0f}",
        "left": f"{snapshot.seconds_left / 60:.1f} min",
        "memory": f"{snapshot.memory_bytes / GIB:.1f} GiB",
        "valid loss": "-" if evaluation is None else f"{evaluation.loss:.4f}",
    }
    if evaluation is not None and evaluation.accuracy is not None:
        cells["accuracy"] = f"{evaluation.accuracy:.3f}"
        cells["macro F1"] = f"{evaluation.macro_f1:.3f}"
    table = Table(*cells, box=None, pad_edge=False, header_style="dim")
    table.add_row(*cells.values())
    return table
