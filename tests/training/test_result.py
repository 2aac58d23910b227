"""The files beside an adapter's weights."""

import json
from itertools import pairwise
from pathlib import Path

from finlora.adapters.adapter import Manifest, TrainingQuantization
from finlora.adapters.source import read_peft_folder
from finlora.datasets.rows import Split
from finlora.training.adapter_files import AdapterFiles
from finlora.training.config import TrainingConfig
from finlora.training.evaluation import Evaluation
from finlora.training.gate import Verdict
from finlora.training.preparation import Dataset
from finlora.training.result import Result, extra_files
from finlora.training.trainer import Step, TrainingHistory

NUM_STEPS = 20_000
MANIFEST = Manifest(quantization=TrainingQuantization(type="nf4"))


def history(num_steps: int) -> TrainingHistory:
    numbers = range(1, num_steps + 1)
    return TrainingHistory(
        [
            Step(n, num_steps, 0, 0.123456789 / n, 1e-4 / 3, 1 / 7, 1234, 0.987654321)
            for n in numbers
        ],
        [Evaluation(n, 1 / 3, 2 / 3, 5 / 7) for n in numbers],
    )


def files_of(history: TrainingHistory) -> dict[str, bytes]:
    dataset = Dataset([], Split([], [], 0), [], [])
    return extra_files(
        "long", TrainingConfig(), MANIFEST, "command", dataset, history, Verdict(True, "first")
    )


def test_the_folder_of_a_long_run_can_be_added_to_a_registry(tmp_path: Path) -> None:
    files = files_of(history(NUM_STEPS))
    Result(AdapterFiles(b"{}", b""), MANIFEST, files, Verdict(True, "first")).save(tmp_path)
    metrics = json.loads(
        read_peft_folder(tmp_path, max_weights_bytes=9).extra_files["metrics.json"]
    )
    numbers = [step["number"] for step in metrics["steps"]]
    assert numbers[-1] == NUM_STEPS
    assert len(numbers) > 500
    assert len({after - before for before, after in pairwise(numbers)}) == 1
    assert [found["step"] for found in metrics["evaluations"]] == numbers


def test_a_short_run_is_told_step_by_step() -> None:
    metrics = json.loads(files_of(history(30))["metrics.json"])
    assert [step["number"] for step in metrics["steps"]] == list(range(1, 31))
