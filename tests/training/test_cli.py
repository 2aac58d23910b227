import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from finlora.adapters.compatibility import check_compatible
from finlora.adapters.label_task import LabelTask
from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.validation import parse_weights
from finlora.bases.spec import BaseSpec
from finlora.config import Quantization
from finlora.datasets.rows import Row
from finlora.errors import ConfigError
from finlora.model import base_spec
from finlora.training.cli import main
from finlora.training.config_files import load_config
from tests.training.configs import files_below, write_config
from tests.training.rows import LABELS, make_rows, write_rows

WORDS = ("rates", "bonds", "shares", "cash", *map(str, range(2010, 2042)))


def test_a_run_registers_an_adapter_that_plain_peft_loads(
    config_file: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_folder = tmp_path / "registry"
    arguments = ["verbs", "--config", str(config_file), "--registry", str(registry_folder)]
    assert main([*arguments, "--device", "cpu", "--seed", "3"]) == 0
    assert "registered verbs@" in capsys.readouterr().err

    registry = AdapterRegistry(registry_folder)
    adapter = registry.resolve("verbs")
    spec: BaseSpec = base_spec(str(base_folder))
    manifest = adapter.manifest
    assert adapter.variant == "4bits_r8"
    assert manifest.labels == list(LABELS)
    assert manifest.quantization.type == "nf4"
    assert manifest.quantization.double_quant is True
    assert manifest.eos_token_ids == [2]
    assert check_compatible(adapter, spec, Quantization.NF4, strict=True) == []
    layers = parse_weights(adapter.config, registry.read(adapter), spec, max_rank=8)
    assert layers.keys() == spec.linear_layers.keys()

    scores = manifest.scores or {}
    assert scores["adapter"]["num_rows"] == (manifest.training or {})["num_valid_rows"]
    assert scores["adapter"]["accuracy"] > 0.8 > scores["bare_base"]["accuracy"]
    card = (adapter.folder / "README.md").read_text()
    assert "finlora-train verbs --config configs.json --seed 3\n" in card
    assert str(tmp_path) not in card
    assert f"| {scores['adapter']['accuracy']:.3f} |" in card
    metrics = json.loads((adapter.folder / "metrics.json").read_text())
    assert metrics["steps"][0]["loss"] > metrics["steps"][-1]["loss"]
    ends = [step["number"] for step in metrics["steps"] if step["number"] % 3 == 0]
    assert [found["step"] for found in metrics["evaluations"]] == ends
    assert metrics["gate"]["promoted"] is True
    counted = metrics["rows_by_label"]
    assert sum(sides["train"] + sides["valid"] for sides in counted.values()) == 36
    again = load_config("verbs", adapter.folder / "training_config.json", {})
    assert (again.lora_r, again.num_epochs) == (8, 20)
    assert (adapter.folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")

    plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(plain, adapter.folder).eval()
    with torch.no_grad():
        adapted = model(input_ids=torch.tensor([[5, 9, 200]])).logits
        with model.disable_adapter():
            bare = model(input_ids=torch.tensor([[5, 9, 200]])).logits
    assert (adapted - bare).abs().max() > 0.1


def test_enough_validation_rows_calibrate_the_probabilities(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    years = [row for year in range(2018, 2024) for row in make_rows(f"in {year}")]
    write_rows(tmp_path / "valid.jsonl", years)
    config = write_config(tmp_path, base_folder, val_dataset_path="valid.jsonl", num_epochs=6)
    registry = tmp_path / "registry"
    assert main(["verbs", "--config", str(config), "--registry", str(registry)]) == 0
    assert "calibrated by temperature" in capsys.readouterr().err
    adapter = AdapterRegistry(registry).resolve("verbs")
    found = (adapter.manifest.scores or {})["calibration"]
    assert found["num_rows"] == len(years)
    assert found["calibrated_log_loss"] < found["log_loss"]
    assert LabelTask.of(adapter).temperature == found["temperature"] != 1
    assert "calibrated by the temperature" in (adapter.folder / "README.md").read_text()


def test_checkpoints_go_into_a_folder_of_their_names_and_leave_the_rest_of_it_alone(
    config_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    others = folder / "other" / "step-00000004"
    others.mkdir(parents=True)
    (others / "checkpoint.json").write_text("{}")
    (folder / "thesis.txt").write_text("years")
    before = files_below(folder)
    arguments = ["--config", str(config_file), "--registry", str(tmp_path / "registry")]
    arguments += ["--set", "num_epochs=1", "--checkpoints", str(folder)]
    assert main(["verbs", *arguments]) == 0
    assert files_below(folder) == before
    assert not (folder / "verbs").exists()


def test_output_without_registering(config_file: Path, tmp_path: Path) -> None:
    output, registry = tmp_path / "out", tmp_path / "registry"
    arguments = ["--set", "num_epochs=1", "--set", "quant_bits=16", "--set", "lora_r=2"]
    arguments += ["--no-register", "--output", str(output), "--registry", str(registry)]
    assert main(["verbs", "--config", str(config_file), *arguments]) == 0
    assert {path.name for path in files_below(output)} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "metrics.json",
        "training_config.json",
        "loss_curve.png",
        "README.md",
    }
    assert json.loads((output / "manifest.json").read_text())["quantization"]["type"] == "none"
    assert files_below(registry) == []


def test_dry_run_tells_and_writes_nothing(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tmp_path / "registry"
    arguments = ["verbs", "--config", str(config_file), "--registry", str(registry)]
    assert main([*arguments, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["learning_rate"] == 0.01
    assert told["num_train_rows"] + told["num_valid_rows"] == 36
    assert told["first_row"]["target_token_ids"][-1] == 2
    assert told["num_trainable_parameters"] > 0
    assert told["first_row"]["context_tokens"]
    assert told["estimate"]["seconds"] > 0
    assert told["estimate"]["activation_bytes_of_the_longest_batch"] > 0
    assert files_below(registry) == []


def test_list_names_the_configurations(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list"]) == 0
    assert "tweet-sentiment" in capsys.readouterr().out
    assert main(["--list", "--config", str(config_file)]) == 0
    assert "verbs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["--set", "learning_rate"], "KEY=VALUE"),
        (["--set", "dataset_path=none.jsonl"], "there is no data file"),
        (["--set", "max_seq_len=3"], "longer than max_seq_len=3"),
        (["--set", 'label_names=["up", "down"]'], "none of the labels"),
        (["--no-register"], "train for nothing"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_registered(
    config_file: Path, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    registry = tmp_path / "registry"
    fixed = ["verbs", "--config", str(config_file), "--registry", str(registry)]
    with pytest.raises(ConfigError, match=reason):
        main([*fixed, *arguments])
    assert files_below(registry) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", 'label_names=["negative","neutral","positive","neutral"]'], "different texts"),
        (["--set", 'prompt_template="{input} or {input}"'], "exactly once"),
        (["--output", "configs.json"], "--output .*configs.json cannot be written: File exists"),
    ],
)
def test_what_could_not_be_kept_is_refused_before_anything_is_learned(
    config_file: Path,
    tmp_path: Path,
    arguments: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finlora.training.run.open_workshop", pytest.fail)
    with pytest.raises(ConfigError, match=reason):
        main(["verbs", "--config", str(config_file), "--registry", "registry", *arguments])


def test_without_a_name_it_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "--list" in capsys.readouterr().err


def test_a_run_can_start_from_a_registered_adapter(config_file: Path, tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    fixed = ["verbs", "--config", str(config_file), "--registry", str(registry.folder)]
    assert main(fixed) == 0
    first = registry.resolve("verbs")
    again = ["--set", "initial_adapter=verbs", "--set", "num_epochs=1"]
    assert main([*fixed, *again, "--when-unsure", "promote"]) == 0
    second = registry.resolve("verbs")
    assert (second.manifest.training or {})["initial_adapter"] == first.reference
    losses = [
        json.loads((adapter.folder / "metrics.json").read_text())["steps"][0]["loss"]
        for adapter in (first, second)
    ]
    assert losses[1] < losses[0] / 2
    assert registry.rollback("verbs") == first


def test_the_program_tells_an_error_in_one_line(tmp_path: Path) -> None:
    program = "from finlora.training.cli import entry; raise SystemExit(entry())"
    arguments = ["verbs", "--config", str(tmp_path / "none.json")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr == f"finlora-train: {arguments[2]} cannot be read: No such file or directory\n"
    )
    assert done.stdout == ""


def test_help_and_list_need_no_torch() -> None:
    program = """
import sys
from finlora.training.cli import main
from finlora.training.config_files import load_config
main(["--list"])
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_free_answers_are_judged_by_their_loss(config_file: Path, tmp_path: Path) -> None:
    rows = [Row(f"Say {word}.\nAnswer: ", f"{word} it is") for word in WORDS]
    write_rows(tmp_path / "rows.jsonl", rows)
    registry = AdapterRegistry(tmp_path / "registry")
    fixed = ["verbs", "--config", str(config_file), "--registry", str(registry.folder)]
    assert main(fixed) == 0
    adapter = registry.resolve("verbs")
    scores = adapter.manifest.scores or {}
    assert adapter.manifest.labels is None
    assert scores["loss"] < scores["bare_base_loss"] / 2
    assert f"{scores['loss']:.3f}" in (adapter.folder / "README.md").read_text()


def test_the_list_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["news-sentiment"]["base_model"]
