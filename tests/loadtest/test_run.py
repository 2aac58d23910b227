import json
from pathlib import Path

import pytest

from loadtest.peers.load import Load, Result
from loadtest.peers.run import Run, main, publish
from tests.tiny_models import build


@pytest.fixture
def headlines(tmp_path: Path) -> Path:
    file = tmp_path / "headlines.jsonl"
    rows = ({"context": f"Input: shares of bank {i} rose\nAnswer: "} for i in range(6))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_comparison_from_nothing_to_figures(
    tmp_path: Path, headlines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build("llama", tmp_path / "tiny-llama")
    output = tmp_path / "results"
    arguments = ["--model", str(base), "--adapters", "2", "--rounds", "1", "--clients", "4"]
    arguments += ["--requests", "12", "--slow-requests", "6", "--warmup", "4"]
    arguments += ["--data", str(headlines), "--output", str(output)]
    assert main([*arguments, "--server-args", "--max-model-len 256"]) == 0
    results = json.loads((output / "results.json").read_text())
    assert [run["server"] for run in results["runs"]] == ["finlora", "peft"]
    assert all(run["result"]["errors"] == 0 for run in results["runs"])
    assert all(run["resident_bytes"] > 100_000_000 for run in results["runs"])
    assert results["ratios"]["peft"]["value"] > 0
    assert results["load"]["models"] == ["a0", "a1"]
    assert results["machine"]["physical_cores"] >= 1
    assert (output / "requests.png").stat().st_size > 1000
    assert (output / "table.md").read_text() in capsys.readouterr().out


def test_failed_requests_show_in_the_published_figures(tmp_path: Path) -> None:
    failed = Result(0.0, 0.1, 0.2, 0.3, errors=8, first_error="status 500: no")
    run = Run("finlora", 1, failed, seconds_to_ready=1.0, resident_bytes=1)
    publish([run], Load(models=("a0",)), tmp_path)
    assert "| 8 |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["result"]["errors"] == 8


@pytest.mark.parametrize("flag", ["--rounds", "--clients", "--requests", "--adapters"])
def test_nothing_can_be_measured_with_none(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([flag, "0"])
    assert error.value.code == 2
    assert "not at least 1" in capsys.readouterr().err
