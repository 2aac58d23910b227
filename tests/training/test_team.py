import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finlora.errors import ConfigError
from finlora.training.team import ALONE, Team, is_leader, joined
from tests.training.configs import write_config
from tests.training.rows import write_rows

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_alone_nothing_is_exchanged() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.add_gradients([parameter])
    ALONE.agree_on([parameter])
    assert parameter.grad is None
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert (ALONE.add(0.5), ALONE.any(True), ALONE.any(False)) == (0.5, True, False)
    assert ALONE.from_leader("seen") == "seen"


@pytest.mark.parametrize("num_items", [0, 1, 5, 6])
def test_shares_hold_every_item_once(num_items: int) -> None:
    items = list(range(num_items))
    shares = [Team(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items


def test_the_first_of_the_launched_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_leader()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not is_leader()
    monkeypatch.setenv("RANK", "0")
    assert is_leader()


def test_a_launch_without_its_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="cannot reach each other"), joined("cpu"):
        pass


def train(folder: Path, launcher: list[str], output: str, **fields: Any) -> dict[str, Any]:
    settings = [part for key, value in fields.items() for part in ("--set", f"{key}={value}")]
    command = [*launcher, "-m", "finlora", "train", "verbs", "--config"]
    command += [str(folder / "configs.json"), "--device", "cpu", "--no-register", *settings]
    command += ["--output", str(folder / output), "--checkpoints", str(folder / f"{output}-kept")]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    found: dict[str, Any] = json.loads((folder / output / "metrics.json").read_text())
    return found


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_batches(
    tmp_path: Path, base_folder: Path
) -> None:
    # 23 rows in batches of 4 make 3 steps of two batches; with batches of 5 the last has one alone.
    write_rows(tmp_path / "rows.jsonl")
    write_config(tmp_path, base_folder, num_epochs=3)
    for size in (4, 5):
        together = train(tmp_path, LAUNCHER, f"two-{size}", batch_size=size)
        alone = train(
            tmp_path,
            [sys.executable],
            f"one-{size}",
            batch_size=size,
            gradient_accumulation_steps=2,
        )
        for key in ("loss", "grad_norm", "num_tokens"):
            expected = [step[key] for step in alone["steps"]]
            assert [step[key] for step in together["steps"]] == pytest.approx(expected, rel=1e-4)
        losses = [found["loss"] for found in alone["evaluations"]]
        assert [f["loss"] for f in together["evaluations"]] == pytest.approx(losses, rel=1e-3)
