import json
from pathlib import Path

import pytest

from finlora.errors import ConfigError
from finlora.evaluation.cli import main
from finlora.model import base_spec
from tests.api.live import register
from tests.tiny_models import build
from tests.training.rows import LABELS, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval-cli")
    model = build("llama", folder / "tiny-llama")
    register(folder / "registry", base_spec(str(model)), "news", seed=0)
    write_rows(folder / "own.jsonl")
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    engine = ["--base-model", str(folder / "tiny-llama"), "--registry", str(folder / "registry")]
    return [*more, *engine, "--device", "cpu", "--max-model-len", "256"]


def test_a_report_of_two_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = str(folder / "own.jsonl"), folder / "out"
    given = ["--model", "base,news", "--data", data, "--output", str(output), "--json"]
    assert main(arguments(folder, *given)) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert json.loads((output / "results.json").read_text()) == results
    assert [found["model"] for found in results["results"]] == ["base", "news"]
    assert results["test_sets"][0]["labels"] == list(LABELS)
    assert results["comparisons"][0]["second"] == "news"
    assert captured.err.count("written: ") == 5
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 72
    assert sum(rows[0]["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_the_page_needs_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "page"
    given = ["--model", "news", "--data", str(folder / "own.jsonl"), "--output", str(output)]
    assert main(arguments(folder, *given)) == 0
    assert "news" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert "<svg" in page
    for word in ("<script", "<link", "src=", "@import"):
        assert word not in page
    report = (output / "report.md").read_text()
    assert "| own | news | 36 |" in report


def test_finloras_protocol_as_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(folder / "own.jsonl"), "--mode", "generate", "--max-rows", "5"]
    assert main(arguments(folder, *given)) == 0
    shown = capsys.readouterr().out
    assert "label contained" in shown
    assert "p95 latency" in shown


def test_a_table_needs_a_template(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,positive\nb,negative\n")
    given = ["--data", str(tmp_path / "t.csv"), "--text-column", "text"]
    with pytest.raises(ConfigError, match="go together"):
        main(arguments(folder, *given))
    with pytest.raises(ConfigError, match="--template"):
        main(arguments(folder, *given, "--label-column", "label"))


def test_a_version_is_scored_with_its_own_template(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = base_spec(str(folder / "tiny-llama"))
    made = register(tmp_path / "r", spec, "news", seed=0, prompt_template="News: {input}\nAnswer: ")
    (tmp_path / "t.csv").write_text("text,label\na,positive\nb,negative\n")
    given = ["--data", str(tmp_path / "t.csv"), "--text-column", "text", "--label-column", "label"]
    given = ["--model", made.reference, *given, "--json"]
    given = arguments(folder, *given, "--max-rows", "1")
    given[given.index("--registry") + 1] = str(tmp_path / "r")
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["model"] == made.reference


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["own.jsonl", "--template", "{input}"], "--template is for tables"),
        (["own.jsonl", "--label-values", "0=a"], "--label-values is for tables"),
        (["fpb", "--labels", "a,b"], "--labels is for files: fpb has labels of its own"),
        (
            ["tfns", "fpb", "--text-column", "x", "--label-column", "y"],
            "--text-column is for files",
        ),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], reason: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=reason):
        main(arguments(folder, "--data", *given))


def test_an_output_that_is_a_file_is_told_before_the_base_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(folder / "own.jsonl")
    with pytest.raises(FileExistsError):
        main(arguments(folder, "--data", data, "--output", data))
    assert "loading" not in capsys.readouterr().err


def test_the_tables_are_shown_although_they_cannot_be_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.md").mkdir()
    given = ["--data", str(folder / "own.jsonl"), "--max-rows", "3", "--output", str(tmp_path)]
    with pytest.raises(IsADirectoryError):
        main(arguments(folder, *given))
    assert "accuracy" in capsys.readouterr().out


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="two test sets are called 'own'"):
        main(arguments(folder, "--data", *[str(folder / "own.jsonl")] * 2))


@pytest.mark.parametrize("wrong", [["--max-rows", "0"], ["--label-values", "x"], []])
def test_wrong_usage(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--model", "base", *wrong, *(["--data", "fpb"] if wrong else [])])
