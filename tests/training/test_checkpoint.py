import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from finlora.errors import ConfigError
from finlora.model import LoadedBase
from finlora.training.batches import Example, ExampleEncoder
from finlora.training.checkpoint import Checkpoint, Checkpoints, clear_checkpoints
from finlora.training.config import TrainingConfig
from finlora.training.evaluation import Evaluation
from finlora.training.optimization import make_optimizer
from finlora.training.trainer import Step, Trainer, TrainingHistory
from finlora.training.workshop import attach_layers
from tests.training.rows import make_rows

RECIPE: dict[str, Any] = {"lora_r": 2, "learning_rate": 0.01, "num_epochs": 3, "batch_size": 8}


def make_step(number: int) -> Step:
    return Step(number, 9, 0, 1 / number, 0.1, 0.2, 30, 0.4)


def checkpoint(num_steps: int) -> Checkpoint:
    history = TrainingHistory(
        [make_step(i + 1) for i in range(num_steps)], [Evaluation(num_steps, 0.5)]
    )
    return Checkpoint(history, {"weight.0": torch.full((3,), num_steps / 7)})


class Interrupted(Exception):
    """The process ends here."""


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run", "hash")


def no_report(line: str) -> None:
    pytest.fail(line)


def test_the_newest_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest(no_report) is None
    for num_steps in (2, 11, 100):
        checkpoints.save(checkpoint(num_steps))
    found = checkpoints.newest(no_report)
    assert found is not None
    assert found.history == checkpoint(100).history
    assert torch.equal(found.tensors["weight.0"], checkpoint(100).tensors["weight.0"])
    assert len(list(checkpoints.folder.iterdir())) == 2


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_damaged_one_is_left_out_and_told(
    checkpoints: Checkpoints, file: str, damage: str
) -> None:
    checkpoints.save(checkpoint(2))
    checkpoints.save(checkpoint(4))
    path = max(checkpoints.folder.iterdir()) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-5])
    else:
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 255]) + content[-2:])
    told: list[str] = []
    found = checkpoints.newest(told.append)
    assert found is not None
    assert len(found.history.steps) == 2
    assert len(told) == 1
    assert "00000004" in told[0]


@pytest.mark.parametrize("killed_in", ["write_file", "move_folder"])
def test_a_kill_while_saving_leaves_the_one_before(
    checkpoints: Checkpoints, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(checkpoint(2))

    def killed(*_: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(f"finlora.training.checkpoint.{killed_in}", killed)
        with pytest.raises(Interrupted):
            checkpoints.save(checkpoint(4))
    found = checkpoints.newest(no_report)
    assert found is not None
    assert len(found.history.steps) == 2
    checkpoints.save(checkpoint(4))  # what the kill left is in nobody's way
    assert (newest := checkpoints.newest(no_report)) is not None
    assert len(newest.history.steps) == 4


def test_what_a_user_keeps_beside_them_is_never_deleted(checkpoints: Checkpoints) -> None:
    kept = [checkpoints.folder / name for name in ("notes.txt", "step-by-step", "step-99.txt")]
    checkpoints.folder.mkdir()
    for file in kept:
        file.write_text("mine")
    checkpoints.save(checkpoint(2))
    (checkpoints.folder / ".step-4").mkdir()  # of a kill
    assert checkpoints.newest(no_report) is not None
    clear_checkpoints(checkpoints.folder)
    assert sorted(checkpoints.folder.iterdir()) == sorted(kept)
    clear_checkpoints(checkpoints.folder / "absent")


def test_an_emptied_folder_goes_too(checkpoints: Checkpoints) -> None:
    checkpoints.save(checkpoint(2))
    clear_checkpoints(checkpoints.folder)
    assert not checkpoints.folder.exists()


def test_another_runs_checkpoint_is_refused(checkpoints: Checkpoints) -> None:
    checkpoints.save(checkpoint(2))
    with pytest.raises(ConfigError, match="another configuration"):
        Checkpoints(checkpoints.folder, "other").newest(no_report)


@pytest.mark.parametrize("fields", [{}, {"lora_dropout": 0.2}, {"peft_use_dora": True}])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    fields: dict[str, Any],
    checkpoints: Checkpoints,
    load: Callable[..., LoadedBase],
    fast: PreTrainedTokenizerFast,
) -> None:
    check_resumed(TrainingConfig(**RECIPE | fields), checkpoints, load, fast)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "adamw_8bit"])
def test_eight_bit_state_is_kept_too(
    optimizer: str,
    checkpoints: Checkpoints,
    load: Callable[..., LoadedBase],
    fast: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def as_on_cuda(
        parameters: list[torch.nn.Parameter], config: TrainingConfig, _: torch.device
    ) -> torch.optim.Optimizer:
        return make_optimizer(parameters, config, torch.device("cuda"))

    monkeypatch.setattr("finlora.training.trainer.make_optimizer", as_on_cuda)
    # Matrices of fewer than 4,096 numbers have plain state.
    config = TrainingConfig(**RECIPE | {"optimizer": optimizer, "lora_r": 64})
    kept = check_resumed(config, checkpoints, load, fast)
    assert {"state1", "state2", "absmax1", "absmax2"} <= {name.split(".")[0] for name in kept}
    assert {kept[name].dtype for name in kept if name.startswith("state1")} == {torch.uint8}


def check_resumed(
    config: TrainingConfig,
    checkpoints: Checkpoints,
    load: Callable[..., LoadedBase],
    fast: PreTrainedTokenizerFast,
) -> dict[str, torch.Tensor]:
    """A run stopped in the middle of its second epoch; gives what was kept of it."""
    examples = [ExampleEncoder(fast, 2).encode(row) for row in make_rows()]

    def epochs(_: int) -> list[Example]:
        return examples

    def trainer() -> Trainer:
        base = load()
        return Trainer(base.model, attach_layers(base, config), config)

    whole = trainer()
    whole.fit(epochs, on_step=lambda _: None)

    first = trainer()

    def stop(step: Step) -> None:
        if step.number == 7:
            checkpoints.save(Checkpoint(first.history, first.tensors()))
            raise Interrupted

    with pytest.raises(Interrupted):
        first.fit(epochs, on_step=stop)
    found = checkpoints.newest(no_report)
    assert found is not None
    second = trainer()
    second.restore(found.history, found.tensors)
    second.fit(epochs, on_step=lambda _: None)

    assert [s.loss for s in second.history.steps] == [s.loss for s in whole.history.steps]
    expected, resumed = whole.tensors(), second.tensors()
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    return found.tensors


def test_facts_are_plain_json(checkpoints: Checkpoints) -> None:
    checkpoints.save(checkpoint(1))
    facts = json.loads((next(checkpoints.folder.iterdir()) / "checkpoint.json").read_text())
    assert facts["steps"][0]["loss"] == 1.0
