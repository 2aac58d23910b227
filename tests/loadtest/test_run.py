import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.peers.candidates import Candidate, Material
from loadtest.peers.run import main
from loadtest.peers.scenarios import KEYS
from tests.loadtest.test_compare import recorder
from tests.tiny_models import build


@pytest.fixture
def headlines(tmp_path: Path) -> Path:
    file = tmp_path / "headlines.jsonl"
    rows = ({"context": f"Input: shares of bank {i} rose\nAnswer: "} for i in range(6))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(tmp_path: Path, headlines: Path, *arguments: str) -> dict[str, Any]:
    base = build("llama", tmp_path / "tiny-llama")
    output = tmp_path / "results"
    small = ["--model", str(base), "--adapters", "2", "--clients", "4", "--requests", "12"]
    small += ["--slow-requests", "6", "--data", str(headlines), "--output", str(output)]
    small += ["--registries", str(tmp_path / "registries")]
    assert main([*small, "--server-args", "--max-model-len 256", *arguments]) == 0
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def test_a_comparison_from_nothing_to_figures(
    tmp_path: Path,
    headlines: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PEER_VLLM", "PEER_LLAMA_SERVER"):
        monkeypatch.delenv(name, raising=False)
    chosen = "mixed-3,choice,server-vs-engine"
    results = run(tmp_path, headlines, "--scenarios", chosen, "--rounds", "1")
    shown = capsys.readouterr().out
    runs = results["scenarios"]["mixed-3"]["runs"]
    assert [each["side"] for each in runs] == ["finlora, adapters mixed", "peft, adapters mixed"]
    assert [each["result"]["requests"] for each in runs] == [12, 6]
    assert all(each["result"]["errors"] == 0 for each in runs)
    assert all(each["resident_bytes"] > 100_000_000 for each in runs)
    server, engine = results["scenarios"]["server-vs-engine"]["runs"]
    # The same prompts, so the same tokens, whichever way they came.
    for count in ("prompt_tokens", "requests"):
        assert server["result"][count] == engine["result"][count] > 0
    assert ("choice" in results["scenarios"]) != ("skipped choice: finlora refuses" in shown)
    assert "skipped a peer: PEER_VLLM not set" in shown
    assert "\n2 adapters mixed, 4 clients, 3 new tokens\n" in shown
    assert results["machine"]["physical_cores"] >= 1
    assert (tmp_path / "results" / "requests.png").stat().st_size > 1000
    assert results["summary"][0]["compared"].startswith("speed of finlora, adapters mixed / peft")


def tiny_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_at: dict[str, str]
) -> Callable[[str], int]:
    """A run over recording servers, some of which end at a request, instead of real ones."""

    def candidates(*_: object) -> tuple[dict[str, Candidate], dict[str, Path]]:
        names = "finlora", "peft", "llama.cpp", "finlora-no-adapters"
        made = {name: recorder(name, tmp_path) for name in names}
        for name, number in ends_at.items():
            made[name] = replace(made[name], environment={"END_AFTER_REQUESTS": number})
        return made, {}

    material = Material("base", tmp_path, (Path("a0"), Path("a1")), tmp_path, 1, False)
    monkeypatch.setattr("loadtest.peers.run.prepare", lambda *_: material)
    monkeypatch.setattr("loadtest.peers.run._candidates", candidates)

    def start(scenarios: str) -> int:
        sizes = ["--clients", "2", "--requests", "6", "--rounds", "1", "--output", str(tmp_path)]
        return main(["--scenarios", scenarios, *sizes])

    return start


def test_a_scenario_that_failed_fails_the_run_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tiny_bench(tmp_path, monkeypatch, {"finlora-no-adapters": "3"})
    assert start("mixed-vs-base,unused-adapters") == 1
    assert "failed unused-adapters: " in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert list(results["scenarios"]) == ["mixed-vs-base"]
    assert "ended with code 3" in results["failed"]["unused-adapters"]
    assert start("mixed-vs-base,choice") == 0  # what a server refuses is no failure


def test_a_peer_that_failed_fails_the_run_but_not_the_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tiny_bench(tmp_path, monkeypatch, {"peft": "3"})
    assert start("mixed-3") == 1
    shown = capsys.readouterr().out
    assert "mixed-3: without peft, adapters mixed: " in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["failed"] == {}
    (compared,) = results["summary"]
    assert compared["compared"].endswith("/ llama.cpp, adapters mixed")


@pytest.mark.slow
def test_every_scenario_of_our_own_server(tmp_path: Path, headlines: Path) -> None:
    own = [key for key in KEYS if key not in ("mixed-3", "choice", "server-vs-engine")]
    sizes = ["--rounds", "2", "--in-flight", "6", "--registered", "60", "--probes", "3"]
    results = run(tmp_path, headlines, "--scenarios", ",".join(own), *sizes)
    assert list(results["scenarios"]) == own
    cold = results["scenarios"]["cold-adapter"]["rounds"]
    assert [each["ram_count"] for each in cold["load_seconds"]] == [3, 3]
    assert cold["cold"][0]["errors"] == []
    starts = results["scenarios"]["warm-start"]["starts"]
    assert len(starts) == 2
    assert starts[0]["when_ready"]["parts"]["kv_cache"] > 0
    ratios = results["scenarios"]["many-registered"]["ratios"]
    assert list(ratios) == ["finlora-registered, adapters mixed"]


@pytest.mark.parametrize("flag", ["--rounds", "--clients", "--requests", "--adapters"])
def test_nothing_can_be_measured_with_none(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([flag, "0"])
    assert error.value.code == 2
    assert "not at least 1" in capsys.readouterr().err


def test_an_unknown_scenario_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--scenarios", "mixed-3,mixed-4"])
    assert error.value.code == 2
    assert "unknown: mixed-4" in capsys.readouterr().err
