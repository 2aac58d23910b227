"""How far a run is, to whoever watches it: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from finlora.logs import TextFormatter

SECONDS_BETWEEN_LINES = 10
MAX_REPORTED = 20  # bad rows that get a line each


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is to tell."""

    num_rows: int  # in all
    num_new: int  # of this run
    num_bad: int
    fraction: float | None  # of the input that was read
    first_fraction: float  # where this run began
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of this run."""
        return self.num_new / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """By the pace so far; None: nobody knows."""
        if self.fraction is None or self.fraction <= self.first_fraction:
            return None
        return self.seconds * (1 - self.fraction) / (self.fraction - self.first_fraction)

    def __str__(self) -> str:
        parts = [f"{self.num_rows:,} rows", f"{self.rows_per_second:.1f} rows/s"]
        if self.num_bad:
            parts.append(f"{self.num_bad:,} with errors")
        if self.seconds_left is not None:
            parts.append(f"{_duration(self.seconds_left)} left")
        return ", ".join(parts)


class View(Protocol):
    """What a run is shown on."""

    def line(self, text: str) -> None:
        """A sentence that stays."""

    def update(self, standing: Standing) -> None:
        """The newest figures."""


class Lines:
    """A line every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        """On standard error, as rows may go to standard output."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def update(self, standing: Standing) -> None:
        """Now and then."""
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.line(str(standing))


class Bar:
    """A bar that stays at the bottom; sentences scroll above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def line(self, text: str) -> None:
        """Above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, standing: Standing) -> None:
        """The bar shows the share of the input."""
        total = None if standing.fraction is None else 1.0
        self._progress.update(
            self._task,
            completed=standing.fraction or 0,
            total=total,
            description=str(standing),
        )


@contextmanager
def watched() -> Iterator[View]:
    """A bar on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, redirect_stdout=False) as progress:
        yield Bar(progress)


def show_warnings() -> None:
    """Log lines of what this process runs, on standard error, with all that they tell."""
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
