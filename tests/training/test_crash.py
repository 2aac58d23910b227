"""Real processes that are killed, or run out of disk, in the middle of a file operation.

They fork from a server that has imported the trainer once.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finlora.adapters.registry import AdapterRegistry
from finlora.errors import FinLoRAError
from finlora.training.cli import main
from tests.training.configs import write_config
from tests.training.rows import write_rows

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.test_crash", "finlora.training.run"])
DEADLINE_SECONDS = 280
SETTINGS = {
    "num_epochs": 3,
    "checkpoint_steps": 2,
    "lora_dropout": 0.1,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
}


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    """From now on logs still fit, and no weights."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))


def work(arguments: list[str], log: Path, event: Callable[[], None], at: int) -> None:
    """Run the program; `event` strikes when it makes its `at`-th file or folder durable."""
    sync, done = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done == at:
            event()
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.stderr = log.open("w", buffering=1)
    try:
        sys.exit(main(arguments))
    except FinLoRAError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


class Run:
    """One configuration with a registry and checkpoints of its own."""

    def __init__(self, folder: Path) -> None:
        self.registry = AdapterRegistry(folder / "registry")
        self.checkpoints = folder / "checkpoints"
        self.log = folder / "stderr.txt"
        self._arguments = ["verbs", "--config", str(folder / "configs.json"), "--device", "cpu"]
        self._arguments += ["--registry", str(self.registry.folder), "--plain", "--threads", "1"]
        self._arguments += ["--checkpoints", str(self.checkpoints), "--log", str(folder / "log")]

    def start(self, *flags: str, event: Callable[[], None] = kill_self, at: int = 0) -> int | None:
        """Exit code; -9 when it was killed."""
        process = FORKS.Process(target=work, args=([*self._arguments, *flags], self.log, event, at))
        process.start()
        process.join(DEADLINE_SECONDS)
        return process.exitcode

    def losses(self) -> list[float]:
        """Of the version that is served, whose files are checked."""
        adapter = self.registry.resolve("verbs")
        self.registry.read(adapter)
        metrics: dict[str, Any] = json.loads((adapter.folder / "metrics.json").read_text())
        return [step["loss"] for step in metrics["steps"]]

    def check_registry(self) -> None:
        """Whatever is there is whole."""
        for name in self.registry.names():
            for adapter in self.registry.versions(name):
                self.registry.read(adapter)


@pytest.fixture
def make(tmp_path: Path, base_folder: Path) -> Callable[[str], Run]:
    def new(name: str) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        write_rows(folder / "rows.jsonl")
        write_config(folder, base_folder, **SETTINGS)
        return Run(folder)

    return new


@pytest.mark.slow
def test_a_run_killed_again_and_again_learns_what_an_undisturbed_one_does(
    make: Callable[[str], Run],
) -> None:
    whole, killed = make("whole"), make("killed")
    assert whole.start() == 0
    # Within the first checkpoint, between its files, after its rename, in the next epoch's, ...
    for at in (1, 2, 3, 5, 9, 14):
        assert killed.start("--resume", at=at) == -signal.SIGKILL
        killed.check_registry()
        assert killed.registry.names() == []
    assert killed.start("--resume") == 0
    assert "going on after step" in killed.log.read_text()
    assert killed.losses() == whole.losses()
    assert killed.registry.resolve("verbs").digest == whole.registry.resolve("verbs").digest


@pytest.mark.slow
def test_a_kill_while_registering_leaves_a_whole_version_or_none(
    make: Callable[[str], Run],
) -> None:
    run, at = make("run"), 1
    flags = ["--set", "num_epochs=1", "--set", "checkpoint_steps=1000", "--when-unsure", "promote"]
    while (code := run.start("--resume", *flags, at=at)) != 0:
        assert code == -signal.SIGKILL
        run.check_registry()
        at += 3
    assert at > 10  # it was killed in several places
    assert len(run.losses()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 8])
def test_a_full_disk_costs_no_finished_checkpoint_and_no_served_version(
    make: Callable[[str], Run], at: int
) -> None:
    run = make("run")
    assert run.start("--set", "seed=5") == 0
    served = run.registry.resolve("verbs")
    assert run.start(event=fill_disk, at=at) == 1
    told = run.log.read_text()
    assert "no checkpoint could be written" in told
    assert "Traceback" not in told
    assert run.registry.resolve("verbs") == served
    run.check_registry()
    assert run.start("--resume", "--when-unsure", "promote") == 0
    assert "going on after step" in run.log.read_text()
    assert run.registry.resolve("verbs") != served
