"""Runs of `finlora-train` that are stopped, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from finlora.adapters.registry import AdapterRegistry
from finlora.errors import ConfigError, FinLoRAError
from finlora.training import run
from finlora.training.cli import main
from tests.training.configs import files_below
from tests.training.rows import make_rows, write_rows


def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_never_stopped(
    config_file: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    fixed = [sys.executable, "-m", "finlora", "train", "verbs", "--config", str(config_file)]
    fixed += ["--device", "cpu", "--checkpoints", str(tmp_path / "checkpoints")]
    fixed += ["--registry", str(tmp_path / "registry"), "--set", "num_epochs=80"]
    fixed += ["--set", "eval_steps=0"]
    with subprocess.Popen(fixed, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("step 1/"):
                break
        running.send_signal(signal.SIGTERM)
        told = running.stderr.read()
        assert running.wait() == 0
    assert "--resume goes on" in told
    assert files_below(tmp_path / "registry") == []

    done = subprocess.run(
        [*fixed, "--resume"], stderr=subprocess.PIPE, text=True, env=environment, check=True
    )
    assert "going on after step" in done.stderr
    assert files_below(tmp_path / "checkpoints") == []
    adapter = AdapterRegistry(tmp_path / "registry").resolve("verbs")
    steps = json.loads((adapter.folder / "metrics.json").read_text())["steps"]
    assert [step["number"] for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == steps[0]["num_steps"]


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What SIGTERM sets."""
    event = threading.Event()
    monkeypatch.setattr("finlora.training.cli._stop_signal", lambda: event)
    return event


@pytest.mark.parametrize("moment", ["build_manifest", "validate"])
def test_a_run_stopped_behind_its_last_step_registers_nothing_and_goes_on(
    moment: str,
    config_file: Path,
    tmp_path: Path,
    stop: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fixed = ["verbs", "--config", str(config_file), "--registry", str(tmp_path / "registry")]
    fixed += ["--checkpoints", str(tmp_path / "work"), "--set", "num_epochs=4"]
    # It ends early, at no step that is due for a checkpoint.
    fixed += ["--set", "eval_steps=1", "--set", "early_stopping=1", "--set", "learning_rate=1"]
    whole: Any = getattr(run, moment)

    def stopped_then(*given: Any, **named: Any) -> Any:
        stop.set()
        return whole(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(run, moment, stopped_then)
        assert main(fixed) == 0
    assert "--resume goes on" in capsys.readouterr().err
    assert files_below(tmp_path / "registry") == []
    stop.clear()
    assert main([*fixed, "--resume"]) == 0
    told = capsys.readouterr().err
    assert "going on after step" in told
    assert "\nstep " not in told
    assert AdapterRegistry(tmp_path / "registry").names() == ["verbs"]


def test_a_stopped_run_whose_state_cannot_be_kept_has_failed(
    config_file: Path, tmp_path: Path, stop: threading.Event
) -> None:
    stop.set()
    (tmp_path / "work").write_text("a file where the folder should be")
    fixed = ["verbs", "--config", str(config_file), "--registry", str(tmp_path / "registry")]
    with pytest.raises(FinLoRAError, match=r"stopped after step 1 of .*could not be kept"):
        main([*fixed, "--checkpoints", str(tmp_path / "work")])
    assert files_below(tmp_path / "registry") == []


def test_the_same_rows_divided_in_another_way_are_another_run(
    config_file: Path, tmp_path: Path, stop: threading.Event
) -> None:
    for name, rows in zip("abc", (make_rows()[i : i + 12] for i in (0, 12, 24)), strict=True):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    fixed = ["verbs", "--config", str(config_file), "--registry", str(tmp_path / "registry")]
    fixed += ["--checkpoints", str(tmp_path / "work")]
    stop.set()

    def divided(train: list[str], valid: list[str]) -> list[str]:
        sides = (f"dataset_path={json.dumps(train)}", f"val_dataset_path={json.dumps(valid)}")
        return ["--set", sides[0], "--set", sides[1]]

    first = divided(["a.jsonl", "b.jsonl"], ["c.jsonl"])
    assert main([*fixed, *first]) == 0
    with pytest.raises(ConfigError, match="another configuration, data set or base"):
        main([*fixed, *divided(["a.jsonl"], ["b.jsonl", "c.jsonl"]), "--resume"])
    assert main([*fixed, *first, "--resume"]) == 0
