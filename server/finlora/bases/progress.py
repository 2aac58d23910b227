"""Shows a person at a terminal that long work goes on; in a log file nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A moving bar with the elapsed time: what runs inside tells nobody how far it is."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    ) as progress:
        progress.add_task(text, total=None)
        yield
