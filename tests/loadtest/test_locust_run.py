"""`python -m loadtest.run` and `python -m loadtest.capacity` as they are started by make."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.capacity.__main__ import main as capacity
from loadtest.run import main as run
from tests.tiny_models import build

ROOT = Path(__file__).parents[2]


def start(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'server'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize("main", [run, capacity])
def test_another_machine_is_not_loaded_by_mistake(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", "http://192.0.2.1:8000", "--output", str(tmp_path)]) == 2
    assert "192.0.2.1 is not this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_of_its_own_with_broken_adapters(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "tiny-llama")
    output = tmp_path / "results"
    done = start(
        "loadtest.run",
        *("--model", str(model), "--adapters", "3", "--registries", str(tmp_path / "registries")),
        *("--server-args", "--max-model-len 256", "--mix", "bad-adapters"),
        *("--output", str(output), "--run-time", "20s", "--max-requests", "60", "PlainUser"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all limits held" in done.stdout
    summary = json.loads((output / "summary.json").read_text())
    refused = {row["name"]: row["count"] for row in summary["rows"] if row["kind"] == "refusal"}
    assert {*refused} == {"unknown adapter", "malformed name", "broken adapter"}
    assert summary["server"]["load_failures"] == refused["broken adapter"]
    assert sorted(summary["models"]) == ["a0", "a1", "a2"]
    assert (output / "latency.png").stat().st_size > 1000
    assert not [*(tmp_path / "registries").glob(".broken-*")]


@pytest.mark.slow
def test_the_capacity_of_a_server_of_its_own(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "tiny-llama")
    output = tmp_path / "results"
    done = start(
        "loadtest.capacity",
        *("--model", str(model), "--adapters", "3", "--registries", str(tmp_path / "registries")),
        *("--server-args", "--max-model-len 256 --max-loras 2", "--mix", "swap-storm"),
        *("--output", str(output), "--first-token-p95-ms", "60000", "--max-rate", "4"),
        *("--seconds", "2", "--warm-up-seconds", "0.5"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((output / "capacity.json").read_text())
    assert record["rate"] == 4
    assert record["server"]["evictions_from_slots"] > 0
    assert record["machine"]["processor"]
