"""Versions that may have learned what a later run judges by."""

import json
from pathlib import Path

import pytest

from finlora.adapters.registry import AdapterRegistry
from finlora.training.cli import main
from finlora.training.config import TrainingConfig
from finlora.training.gate import GateRules, InService, decide
from finlora.training.held_out import doubt_about
from finlora.training.preparation import load_dataset
from finlora.training.validation import Judgement
from tests.training.configs import write_config
from tests.training.rows import make_rows, write_rows


@pytest.fixture
def folder(tmp_path: Path, base_folder: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl")
    for year in ("2024", "2025", "2026"):
        write_rows(tmp_path / f"{year}.jsonl", make_rows(f"in {year}"))
    write_config(tmp_path, base_folder, num_epochs=1)
    return tmp_path


def train(folder: Path, *settings: str) -> AdapterRegistry:
    given = ["verbs", "--config", str(folder / "configs.json"), "--when-unsure", "promote"]
    for setting in settings:
        given += ["--set", setting]
    registry = folder / "registry"
    assert main([*given, "--registry", str(registry)]) == 0
    return AdapterRegistry(registry)


def doubt(folder: Path, registry: AdapterRegistry, *valid: str, share: float = 0.1) -> str | None:
    config = TrainingConfig(
        dataset_path=["rows.jsonl"], val_dataset_path=list(valid), val_fraction=share
    )
    return doubt_about("verbs", registry, config, load_dataset(config, folder))


def test_a_version_that_held_out_less_may_know_the_rows_and_so_may_what_starts_from_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = train(folder, "val_fraction=0.3")
    first = registry.resolve("verbs")
    assert "may have learned" not in capsys.readouterr().err
    assert doubt(folder, registry, share=0.2) is None
    assert doubt(folder, registry, share=0.3) is None
    told = f"{first.reference} may have learned some of these rows: it held out 0.3 of the texts"
    assert doubt(folder, registry, share=0.4) == f"{told}, this run 0.4"

    train(folder, "val_fraction=0.5", "initial_adapter=verbs")
    second = registry.resolve("verbs")
    assert told in capsys.readouterr().err
    card = (second.folder / "README.md").read_text()
    assert "never trained on" not in card
    assert told in card
    metrics = json.loads((second.folder / "metrics.json").read_text())
    assert told in metrics["gate"]["reason"]
    assert doubt(folder, registry, share=0.4) == f"{told}, this run 0.4"


def test_validation_rows_of_ones_own_must_have_been_held_out_before(folder: Path) -> None:
    registry = train(folder, 'val_dataset_path=["2024.jsonl","2025.jsonl"]')
    assert doubt(folder, registry, "2024.jsonl") is None
    assert "in other files" in (doubt(folder, registry, "2024.jsonl", "2026.jsonl") or "")
    assert "in other files" in (doubt(folder, registry) or "")


def test_what_is_unknown_raises_no_doubt(folder: Path) -> None:
    assert doubt(folder, AdapterRegistry(folder / "absent")) is None


@pytest.mark.parametrize(
    ("accuracy", "rules", "promoted"),
    [
        (0.9, GateRules(), True),  # nobody asked how good it is
        (0.9, GateRules(min_accuracy=0.8), False),
        (0.9, GateRules(min_accuracy=0.8, when_unsure="promote"), True),
        (0.7, GateRules(min_accuracy=0.8, when_unsure="promote"), False),
    ],
)
def test_in_doubt_the_user_decides(accuracy: float, rules: GateRules, promoted: bool) -> None:
    verdict = decide(Judgement({}, accuracy, None), InService(), rules, ["it may know them"])
    assert verdict.promoted is promoted
