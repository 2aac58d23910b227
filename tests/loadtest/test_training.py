import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finlora.training.batches import Example
from loadtest.training import memory, report, run
from loadtest.training.material import main as make_material
from loadtest.training.material import read_material
from loadtest.training.measurement import Measurement, StepClock, peak_bytes
from loadtest.training.plain_loop import IGNORED, collate
from loadtest.training.run import main
from tests.tiny_models import build
from tests.training.rows import write_rows

OURS = Measurement(
    loop="finlora",
    losses=[4.0, 2.0, 1.0, 0.5],
    step_seconds=[9.0, 1.0, 1.0, 2.0],
    step_tokens=[100, 100, 100, 200],
    computed_tokens=[60, 60, 60, 120],
    valid_loss=0.7,
    peak_bytes=10**9,
    num_threads=2,
    dtype="float32",
    linear_parameters=1000,
    matmul_flops=480_000.0,
)
PLAIN = replace(OURS, loop="plain", step_seconds=[9.0, 3.0, 3.0, 6.0], computed_tokens=[120] * 4)


def test_figures_follow_their_definitions() -> None:
    # The first step warms up: 400 tokens in 4 seconds, 240 of them computed.
    assert OURS.tokens_per_second == 100
    assert report.bound_share(OURS, OURS.matmul_flops) == 60 * 4 * 1000 / 480_000
    assert OURS.mean_loss == 0.75
    rounds = {"finlora": [OURS, OURS], "plain": [PLAIN, PLAIN]}
    assert report.ratio(rounds).value == pytest.approx(3.0)
    assert "3.00 times the plain loop" in report.table(rounds)
    assert Measurement(**json.loads(OURS.to_json())) == OURS


def test_other_losses_are_told() -> None:
    other = replace(PLAIN, losses=[4.0, 2.0, 1.0, 0.6])
    assert report.losses_agree({"finlora": [OURS], "plain": [PLAIN]})
    assert not report.losses_agree({"finlora": [OURS], "plain": [other]})
    assert "DO NOT AGREE" in report.table({"finlora": [OURS], "plain": [other]})


def test_the_plain_loop_learns_targets_alone() -> None:
    batch = collate([Example([5, 6, 7], [8]), Example([5], [9, 2])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 2, 0]]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [8], [IGNORED, 9, 2, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_process_knows_its_peak_and_the_length_of_its_steps() -> None:
    held = torch.ones(10_000_000)
    assert peak_bytes() >= held.nbytes
    clock = StepClock()
    clock.start()
    clock.step()
    clock.step()
    assert len(clock.seconds) == 2
    assert min(clock.seconds) >= 0


def test_material_comes_back_as_it_was(tmp_path: Path) -> None:
    base = build("llama", tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl")
    fixed = [str(tmp_path), "--model", str(base), "--data", str(rows), "--batch-size", "4"]
    assert make_material([*fixed, "--steps", "5", "--valid", "3"]) == 0
    material = read_material(tmp_path / "material.json")
    steps = material.steps()
    assert [len(step) for step in steps] == [4] * 5
    assert sorted(e.context for step in steps for e in step) == sorted(
        e.context for e in material.rows
    )
    assert len(material.valid) == 3
    assert (material.initial / "adapter_model.safetensors").is_file()


def killed(*which: str) -> Callable[[str, Path, Path, list[str]], Measurement]:
    """Runs of which those of certain flags, or of a whole loop, are killed."""

    def measure(loop: str, material: Path, file: Path, flags: list[str]) -> Measurement:
        if any(word in which for word in (loop, *flags)):
            raise run.RunFailedError(f"loadtest.training.{loop} ended with -9")
        return OURS if loop == "finlora" else PLAIN

    return measure


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., Measurement]], int]:
    monkeypatch.setattr(run, "_make_material", lambda *_: tmp_path / "material.json")

    def start(measure: Callable[..., Measurement]) -> int:
        monkeypatch.setattr(run, "measure", measure)
        return main(["--rounds", "1", "--output", str(tmp_path)])

    return start


def test_a_way_of_the_plain_loop_that_is_killed_is_left_out(
    bench: Callable[[Callable[..., Measurement]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(killed("16", "sdpa")) == 0
    shown = capsys.readouterr().out
    left_out = "left out the plain loop, 16 rows at once, eager: loadtest.training.plain ended"
    assert left_out in shown
    assert shown.count("left out") == 4
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["plain_flags"] == ["--batch-size", "4", "--attention", "eager"]


@pytest.mark.parametrize(
    ("which", "words"),
    [(("sdpa", "eager"), "no way of the plain loop"), (("finlora",), "ended with -9")],
)
def test_nothing_left_to_compare_is_another_code_than_other_losses(
    which: tuple[str, ...],
    words: str,
    bench: Callable[[Callable[..., Measurement]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(killed(*which)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_other_losses_are_code_1(bench: Callable[[Callable[..., Measurement]], int]) -> None:
    other = replace(PLAIN, losses=[4.0, 2.0, 1.0, 0.6])
    assert bench(lambda loop, *_: OURS if loop == "finlora" else other) == 1


@pytest.mark.slow
def test_both_loops_from_nothing_to_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = build("llama", tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl")
    output = tmp_path / "out"
    arguments = ["--model", str(base), "--data", str(rows), "--rounds", "1", "--steps", "4"]
    arguments += ["--batch-size", "4", "--plain-batch-sizes", "2", "--valid", "8"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert "Losses agree" in capsys.readouterr().out
    record = json.loads((output / "results.json").read_text())
    assert record["ratio"]["value"] > 0
    assert all(len(m["losses"]) == 4 for found in record["rounds"].values() for m in found)
    assert (output / "training.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_measured_and_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build("llama", tmp_path / "base")
    monkeypatch.setattr(memory, "CASES", [memory.Case(4, 24, use_dora=True)])
    assert memory.main(["--model", str(folder)]) == 0
    measured, computed = capsys.readouterr().out.split("\n\n")
    title, tokens, _, ready, peak = measured.splitlines()[2].strip("| ").split(" | ")
    assert (title, tokens) == ("NF4 + DoRA", "24")
    assert 100 < int(ready.replace(",", "")) <= int(peak.replace(",", ""))
    # 6.98 of its 8.03 billion weights are in linear layers.
    nf4, _, plain = computed.strip().splitlines()[2:]
    assert nf4.startswith("| NF4 | 3.60 | 2.10 |")
    assert plain.startswith("| 16 bits | 13.96 | 2.10 |")
