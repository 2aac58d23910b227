"""What is told while a file is labelled."""

import logging
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from finlora.logs import log_event
from finlora.predict import run
from finlora.predict.columns import AddedColumns
from finlora.predict.destination import Destination
from finlora.predict.formats import Format
from finlora.predict.progress import Bar, Lines, Standing, show_warnings
from finlora.predict.run import Run
from finlora.predict.sources import open_source
from tests.predict.test_resume import LABELS, Counting, write_input


class Watcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []

    def line(self, text: str) -> None:
        pass

    def update(self, standing: Standing) -> None:
        self.standings.append(standing)


def standing(**changed: float | None) -> Standing:
    values = {"num_rows": 1500, "num_new": 500, "num_bad": 2, "fraction": 0.75,
              "first_fraction": 0.5, "seconds": 50.0}  # fmt: skip
    return Standing(**(values | changed))  # type: ignore[arg-type]


def test_pace_and_time_left_are_those_of_this_run() -> None:
    assert standing().rows_per_second == 10
    assert standing().seconds_left == pytest.approx(50)
    assert str(standing()) == "1,500 rows, 10.0 rows/s, 2 with errors, 0:00:50 left"


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_nobody_knows_before_anything_was_read(fraction: float | None) -> None:
    assert standing(fraction=fraction).seconds_left is None
    assert "left" not in str(standing(fraction=fraction))


def test_the_share_grows_with_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SECONDS_BETWEEN_UPDATES", -1.0)
    source_path, watcher = write_input(tmp_path / "in.csv", 50), Watcher()
    added = AddedColumns(LABELS)
    destination = Destination(tmp_path / "out.csv", Format.CSV, source_path, Format.CSV)
    with open_source(source_path, Format.CSV) as source:
        output = destination.open(source, "text", added, {})
        Run(source, "text", added, output, watcher).label_all(Counting())
        output.close()
    fractions = [s.fraction for s in watcher.standings]
    assert [s.num_rows for s in watcher.standings] == list(range(1, 51))
    assert fractions == sorted(fractions, key=lambda value: value or 0)
    assert fractions[-1] == 1


def test_a_bar_for_terminals_and_lines_for_logs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finlora.predict.progress.SECONDS_BETWEEN_LINES", 0)
    Lines().update(standing())
    assert capsys.readouterr().err == f"{standing()}\n"
    console = Console(force_terminal=True, width=100, record=True)
    with Progress(console=console) as progress:
        bar = Bar(progress)
        bar.update(standing())
        bar.line("news.csv:7: no text")
    shown = console.export_text()
    assert "news.csv:7: no text" in shown
    assert "10.0 rows/s" in shown


def test_a_warning_is_shown_with_its_fields(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    show_warnings()
    log_event(logging.getLogger("finlora.request"), logging.ERROR, "request", status=500)
    assert capsys.readouterr().err.endswith(" ERROR finlora.request: request status=500\n")
