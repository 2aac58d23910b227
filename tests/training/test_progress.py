import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finlora.errors import ConfigError
from finlora.training.display import LiveView, PlainView, Snapshot
from finlora.training.evaluation import Evaluation
from finlora.training.event_log import EventLog
from finlora.training.loss_curve import loss_curve
from finlora.training.progress import Progress
from finlora.training.trackers import open_tracker
from finlora.training.trainer import Step, TrainingHistory


def step(number: int) -> Step:
    return Step(number, 4, 0, 2 / number, 1e-3, 0.5, 300, 2.0)


def tell(progress: Progress) -> None:
    progress.phase("loading")
    for number in range(1, 5):
        progress.step(step(number))
        if number % 2 == 0:
            progress.evaluation(Evaluation(number, 1 / number, 0.75, 0.7))
    progress.close()


def test_the_log_holds_everything_one_object_a_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "runs" / "a.jsonl")
    tell(Progress(PlainView(lambda _: None), log))
    events = [json.loads(line) for line in log.file.read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "phase", "step", "step", "evaluation", "step", "step", "evaluation",
    ]  # fmt: skip
    assert events[2]["loss"] == 1.0
    assert events[3]["accuracy"] == 0.75
    EventLog(log.file, resume=True).write("phase", {"text": "again"})
    assert len(log.file.read_text().splitlines()) == 8
    EventLog(log.file).write("phase", {"text": "anew"})
    assert len(log.file.read_text().splitlines()) == 1


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tell(Progress(PlainView(lambda _: None), EventLog(tmp_path / "file" / "a.jsonl")))
    assert (tmp_path / "file").is_file()


def test_plain_lines_hold_the_first_and_the_last_step() -> None:
    lines: list[str] = []
    tell(Progress(PlainView(lines.append)))
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["1/4", "4/4"]
    assert "150 tokens/s" in lines[1]
    assert "after step 4: validation loss 0.2500, accuracy 0.750, macro F1 0.700" in lines


def test_the_live_display_shows_the_newest_figures() -> None:
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=100))
    view.line("reading [red]rows")
    view.step(Snapshot(step(4), 90.0, 3 * 1024**3, Evaluation(2, 0.25, 0.5, 0.4)))
    view.close()
    shown = screen.getvalue()
    assert "reading [red]rows" in shown
    for figure in ("4/4", "0.5000", "1.00e-03", "150", "1.5 min", "3.0 GiB", "0.2500", "0.500"):
        assert figure in shown


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    tracker = open_tracker("tensorboard", "news", {"lora_r": 4}, tmp_path)
    tell(Progress(PlainView(lambda _: None), None, [tracker]))
    events = EventAccumulator(str(tmp_path / "news-tensorboard")).Reload()
    losses = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in losses][:2] == [(1, 2.0), (2, 1.0)]
    assert [event.value for event in events.Scalars("valid/accuracy")] == [0.75, 0.75]


def test_a_tracker_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--report-to wandb: not installed \(pip install wandb"):
        open_tracker("wandb", "news", {}, tmp_path)


class Failing:
    """A tracker whose server went away."""

    def log(self, step: int, values: dict[str, float]) -> None:
        raise OSError("gone")

    def close(self) -> None:
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_costs_its_figures_alone() -> None:
    lines: list[str] = []
    tell(Progress(PlainView(lines.append), None, [Failing()]))
    assert lines.count("Failing failed and is left out: gone") == 1


def test_the_curve_is_a_picture_also_of_a_single_step() -> None:
    history = TrainingHistory([step(1)])
    assert (loss_curve(history, "loss") or b"").startswith(b"\x89PNG")
    history = TrainingHistory([step(n) for n in range(1, 5)], [Evaluation(2, 0.5)])
    assert len(loss_curve(history, "loss") or b"") > 5000
