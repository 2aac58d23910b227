"""Checkpoints of a run: written aside, hashed, moved into place; only what verifies is read."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from finlora.adapters.files import move_folder, write_file
from finlora.errors import ConfigError
from finlora.training.evaluation import Evaluation
from finlora.training.trainer import Step, TrainingHistory

TENSORS_FILE = "state.safetensors"
FACTS_FILE = "checkpoint.json"  # names the other file's hash, so it is written last
PREFIX = "step-"
OWN_NAME = re.compile(rf"\.?{PREFIX}\d+")  # complete, or what a kill left of one
NUM_KEPT = 2  # the newest, and one in case it does not verify


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    history: TrainingHistory
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run in a folder of its own."""

    def __init__(self, folder: Path, run_hash: str) -> None:
        self.folder = folder
        self._run_hash = run_hash

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one; a kill at any moment leaves the ones before. Raises OSError (disk full)."""
        number = len(checkpoint.history.steps)
        aside = self.folder / f".{PREFIX}{number}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        tensors = save(checkpoint.tensors)
        facts = {
            "run": self._run_hash,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            **asdict(checkpoint.history),
        }
        write_file(aside / TENSORS_FILE, tensors)
        write_file(aside / FACTS_FILE, json.dumps(facts).encode())
        target = self.folder / f"{PREFIX}{number:08d}"
        shutil.rmtree(target, ignore_errors=True)
        move_folder(aside, target)
        later, kept = self._split_at(target)
        for old in [*later, *kept[NUM_KEPT:]]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, report: Callable[[str], None]) -> Checkpoint | None:
        """The newest that verifies; `report` is told of those that do not.

        Raises ConfigError when it belongs to another configuration, data set or base.
        """
        for folder in self._folders():
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                report(f"{folder} is broken and left out: {error}")
        return None

    def _read(self, folder: Path) -> Checkpoint:
        facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_bytes())
        if facts["run"] != self._run_hash:
            raise ConfigError(
                f"{folder} is of another configuration, data set or base; start without --resume"
            )
        content = (folder / TENSORS_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError("its tensors do not match their hash")
        history = TrainingHistory(
            [Step(**step) for step in facts["steps"]],
            [Evaluation(**found) for found in facts["evaluations"]],
        )
        return Checkpoint(history, load(content))

    def _split_at(self, newest: Path) -> tuple[list[Path], list[Path]]:
        """Those of later steps, which did not verify when the run was taken up, and the others."""
        folders = self._folders()
        at = folders.index(newest)
        return folders[:at], folders[at:]

    def _folders(self) -> list[Path]:
        """Complete ones, the newest first."""
        return sorted(self._complete(), reverse=True)

    def _complete(self) -> Iterator[Path]:
        return (path for path in _own(self.folder) if not path.name.startswith("."))


def clear_checkpoints(folder: Path) -> None:
    """Delete those in a folder, and the folder where nothing else is in it."""
    for path in list(_own(folder)):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # something of the user's is there, or nothing ever was
        folder.rmdir()


def _own(folder: Path) -> Iterator[Path]:
    """What the trainer put there; a user may keep other things in the same place."""
    paths = folder.iterdir() if folder.is_dir() else iter(())
    return (path for path in paths if OWN_NAME.fullmatch(path.name))
