"""The whole experiment on a tiny base, stopped and gone on with."""

import json
from pathlib import Path

import pytest

from finlora.errors import ConfigError
from finlora.quality.cli import main
from tests.tiny_models import build
from tests.training.rows import make_rows, write_rows

ARMS = "base-16,base-nf4,lora-16,qlora-nf4,lora-16-on-nf4,qlora-merged"


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--model", str(folder / "base"), "--device", "cpu",
        "--data", str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl"),
        "--work", str(folder / "work"), "--output", str(folder / "out"), "--seeds", "0", *more,
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("llama", tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", make_rows()[:24])
    write_rows(tmp_path / "test.jsonl", make_rows()[24:])
    return tmp_path


def test_arms_are_measured_once_and_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "--arms", "base-nf4,qlora-nf4")) == 0
    first = capsys.readouterr()
    assert "training nf4-r8-all-s0-" in first.err
    assert main(arguments(folder, "--arms", ARMS)) == 0
    second = capsys.readouterr()
    assert "training nf4" not in second.err
    assert "training none-r8-all-s0-" in second.err
    assert second.err.count("NF4 base + QLoRA") == 0
    facts = json.loads((folder / "out" / "quality.json").read_text())
    assert [arm["name"] for arm in facts["arms"]] == ARMS.split(",")
    assert facts["origin_of_16_bit_weights"] is None
    assert facts["goals"][2]["verdict"] == "reached"  # trainer and server agree
    assert "QLoRA merged into 16 bits" in second.out
    assert not (folder / "work" / "merged").exists()
    assert (folder / "out" / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder) not in (folder / "out" / "quality.json").read_text()


def test_a_report_of_nothing_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "--report-only")) == 0
    assert capsys.readouterr().out.count("not measured") == 4


def test_an_output_that_is_a_file_is_told_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(FileExistsError):
        main(arguments(folder, "--output", str(folder / "test.jsonl")))
    assert not (folder / "work").exists()


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    (folder / "other").mkdir()
    other = write_rows(folder / "other" / "test.jsonl", make_rows("in May"))
    with pytest.raises(ConfigError, match="two test sets are called 'test'"):
        main(arguments(folder, "--test", str(folder / "test.jsonl"), str(other)))
    assert not (folder / "work" / "held_out").exists()


@pytest.mark.parametrize("option", ["--max-train-rows", "--max-test-rows", "--num-epochs"])
def test_nothing_is_no_size(folder: Path, option: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments(folder, "--report-only", option, "0"))


@pytest.mark.parametrize("seeds", ["0,0,0", "-1", "a"])
def test_seeds_are_different_numbers(folder: Path, seeds: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments(folder, "--report-only", "--seeds", seeds))


def test_wrong_names_are_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no arm 'x'"):
        main(arguments(folder, "--arms", "x"))
    with pytest.raises(ConfigError, match=r"no data file .*nothing\.jsonl"):
        main(arguments(folder, "--test", "nothing.jsonl", "--data-dir", str(folder)))


@pytest.mark.parametrize("place", ["here", "there"])
def test_a_test_file_is_here_or_in_the_data_folder(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("here", "there"):
        (folder / name).mkdir()
    write_rows(folder / place / "judge.jsonl", make_rows()[24:])
    monkeypatch.chdir(folder / "here")
    given = ["--test", "judge.jsonl", "--data-dir", str(folder / "there")]
    assert main(arguments(folder, "--report-only", *given)) == 0
    assert "judge (12 rows)" in capsys.readouterr().out
