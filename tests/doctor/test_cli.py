"""`finlora doctor` on folders that are in order, and on folders that are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from finlora.adapters.registry import AdapterRegistry
from finlora.cli import main
from finlora.model import prepare_base
from tests import tiny_models
from tests.api.live import register


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny base that is prepared, and a registry with an adapter for it and one for another."""
    monkeypatch.setenv("FINLORA_CACHE", str(tmp_path / "cache"))
    model = tiny_models.build("llama", tmp_path / "tiny-llama")
    settings = {"model": str(model), "device": "cpu", "registry": str(tmp_path / "registry")}
    spec = prepare_base(str(model), "nf4", device="cpu")  # type: ignore[arg-type]
    register(tmp_path / "registry", spec, "news", seed=0)
    register(tmp_path / "registry", spec, "stranger", seed=1, fingerprint="0" * 64)
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def doctor(flags: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main(["doctor", "--json", *flags])
    return code, json.loads(capsys.readouterr().out)


def test_what_is_in_order(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, findings = doctor(flags, capsys)
    assert code == 0
    assert {f["level"] for f in findings} <= {"ok", "note"}
    by_subject = {f["subject"]: f for f in findings}
    assert by_subject.keys() == {
        "cpu", "memory", "allocator", "versions", "cache", "base", "registry", "device", "threads",
        "kernels",
    }  # fmt: skip
    assert by_subject["base"]["level"] == "ok"
    assert by_subject["cache"]["facts"]["folder"] == str(tmp_path / "cache")
    (stranger,) = (f for f in findings if "stranger" in f["text"])
    assert stranger["level"] == "note"
    assert "trained on another base" in stranger["text"]


@pytest.mark.parametrize(
    ("kind", "level"), [("nf4", "ok"), ("fp4", "note"), ("int8", "ok"), ("none", "ok")]
)
def test_only_what_is_kept_quantised_is_to_be_prepared(
    flags: list[str], kind: str, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, findings = doctor([*flags, "--quantization", kind], capsys)
    assert [f["level"] for f in findings if f["subject"] == "base"] == [level]


def test_adapters_beyond_the_limits_are_told(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, findings = doctor([*flags, "--max-lora-rank", "1"], capsys)
    told = {f["text"] for f in findings if f["subject"] == "registry" and f["level"] == "note"}
    assert any("news is not served" in text and "--max-lora-rank" in text for text in told)
    assert any("stranger is not served" in text and "another base" in text for text in told)


def test_lines_for_people(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       cpu        ")
    assert {line[:8].strip() for line in lines} <= {"ok", "note", ""}
    assert all("-> " in line for line in lines if not line[:8].strip())


def test_what_is_not_in_order(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINLORA_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "modules" / "kernels").mkdir(parents=True)
    (tmp_path / "modules" / "kernels" / "__init__.py").write_text("raise SystemExit", "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    adapter = AdapterRegistry(tmp_path / "registry").resolve("news")
    (adapter.folder / "manifest.json").write_text("{", "utf-8")
    code, findings = doctor(flags, capsys)
    assert code == 1
    problems = {f["subject"]: f for f in findings if f["level"] == "problem"}
    assert problems.keys() == {"cache", "registry", "versions"}
    assert "pip uninstall kernels" in problems["versions"]["next_step"]
    assert "news" in problems["registry"]["text"]
    assert all(problem["next_step"] for problem in problems.values())


def test_a_registry_of_another_format_is_a_problem(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "registry" / "format.json").write_text('{"format_version": 99}', "utf-8")
    code, findings = doctor(flags, capsys)
    assert code == 1
    assert any("format 99" in f["text"] for f in findings if f["level"] == "problem")


def test_before_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FINLORA_CACHE", str(tmp_path / "cache"))
    code, findings = doctor(["--registry", str(tmp_path / "none"), "--device", "cpu"], capsys)
    assert code == 0
    steps = {f["subject"]: f["next_step"] for f in findings if f["level"] == "note"}
    assert steps["base"].startswith("finlora models fetch smollm2-135m-instruct")
    assert steps["registry"].startswith("finlora adapters add")


def test_a_library_that_is_too_old_is_a_problem(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "finlora.doctor.libraries.requires", lambda _: ["torch>=99", "nothing-of-that-name>=1"]
    )
    code, findings = doctor(flags, capsys)
    assert code == 1
    told = [f["text"] for f in findings if f["level"] == "problem"]
    assert told[0].startswith("torch is ")
    assert told[1] == "nothing-of-that-name is not installed"
