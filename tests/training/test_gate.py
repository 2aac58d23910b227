from pathlib import Path
from typing import Any

import pytest

from finlora.adapters.cli import main as adapters
from finlora.adapters.registry import AdapterRegistry
from finlora.datasets.rows import Row
from finlora.evaluation.paired_test import PairedTest
from finlora.training.cli import main
from finlora.training.gate import GateRules, InService, decide
from finlora.training.validation import Judgement
from tests.training.configs import write_config
from tests.training.rows import TEMPLATE, VERBS, write_rows

ENOUGH = 200


def judgement(accuracy: float | None = 0.9, test: PairedTest | None = None) -> Judgement:
    return Judgement({}, accuracy, test)


@pytest.mark.parametrize(
    ("found", "rules", "promoted", "reason"),
    [
        (judgement(), {}, True, "nothing was served"),
        (judgement(0.79), {"min_accuracy": 0.8}, False, "below --min-accuracy 0.8"),
        (judgement(0.8), {"min_accuracy": 0.8}, True, "nothing was served"),
        (judgement(test=PairedTest(ENOUGH, 10, 25)), {}, False, "worse than"),
        (judgement(test=PairedTest(ENOUGH, 10, 20)), {}, True, "not worse"),
        (judgement(test=PairedTest(ENOUGH, 25, 10)), {}, True, "not worse"),
        (judgement(test=PairedTest(ENOUGH - 1, 50, 0)), {}, False, "not enough data: 199"),
        (
            judgement(test=PairedTest(ENOUGH - 1, 0, 50)),
            {"when_unsure": "promote"},
            True,
            "not enough data: 199",
        ),
        (
            judgement(0.5, PairedTest(ENOUGH, 50, 0)),
            {"min_accuracy": 0.6},
            False,
            "below --min-accuracy",
        ),
    ],
)
def test_rules(found: Judgement, rules: dict[str, Any], promoted: bool, reason: str) -> None:
    verdict = decide(found, InService(), GateRules(**rules))
    assert verdict.promoted is promoted
    assert reason in verdict.reason


def test_what_cannot_be_compared_is_left_to_the_user() -> None:
    before = InService(problem="trained on another base")
    assert not decide(judgement(), before, GateRules()).promoted
    assert decide(judgement(), before, GateRules(when_unsure="promote")).promoted


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A configuration whose validation set is large enough for the test."""
    folder = tmp_path_factory.mktemp("many")
    rows = [
        Row(TEMPLATE.render(f"Item {number} {verb}."), label)
        for number in range(180)
        for label, verb in VERBS.items()
        if label != "neutral"
    ]
    write_rows(folder / "rows.jsonl", rows)
    return write_config(folder, base_folder, val_fraction=0.6, num_epochs=6, batch_size=8)


def test_a_worse_version_is_registered_but_not_served_until_the_user_says_so(
    many_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    fixed = ["verbs", "--config", str(many_rows), "--registry", str(registry.folder)]
    assert main([*fixed, "--min-accuracy", "0.9"]) == 0
    good = registry.resolve("verbs")
    assert (good.manifest.scores or {})["adapter"]["num_rows"] >= ENOUGH
    capsys.readouterr()

    assert main([*fixed, "--set", "learning_rate=1e-6", "--set", "num_epochs=1"]) == 0
    told = capsys.readouterr().err
    assert "not promoted: worse than the version in service" in told
    assert registry.resolve("verbs") == good
    (worse,) = [version for version in registry.versions("verbs") if version != good]
    scores = worse.manifest.scores or {}
    assert scores["version_in_service"]["accuracy"] == scores_of(good)["accuracy"]
    assert f"finlora adapters rollback verbs --to {worse.digest[:12]}" in told

    assert adapters(["rollback", "verbs", "--to", worse.digest[:12], *fixed[-2:]]) == 0
    assert registry.resolve("verbs") == worse
    assert adapters(["rollback", "verbs", *fixed[-2:]]) == 0
    assert registry.resolve("verbs") == good


def scores_of(adapter: Any) -> Any:
    return adapter.manifest.scores["adapter"]


def test_too_low_an_accuracy_keeps_a_first_version_out_of_service(
    many_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    fixed = ["verbs", "--config", str(many_rows), "--registry", str(registry.folder)]
    arguments = ["--set", "learning_rate=1e-6", "--set", "num_epochs=1", "--min-accuracy", "0.9"]
    assert main([*fixed, *arguments]) == 0
    assert "below --min-accuracy 0.9" in capsys.readouterr().err
    assert registry.names() == []
