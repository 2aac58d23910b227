import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finlora.config import DEFAULT_BASE, Quantization
from finlora.datasets.tasks import TASKS
from finlora.errors import ConfigError
from finlora.training.config import TrainingConfig
from finlora.training.config_files import SHIPPED_CONFIGS, load_config, read_configs

BASES = {"llama_3_1_8b": "meta-llama/Llama-3.1-8B-Instruct", "smollm2_135m": DEFAULT_BASE}
VARIANTS = ("4bits_r4", "8bits_r8", "8bits_r8_rslora", "8bits_r8_dora", "fp16_r8")

# As in FinLoRA's own file.
FINLORA = {
    "base_model": "meta-llama/Llama-3.1-8B-Instruct",
    "dataset_path": "../data/train/finlora_sentiment_train.jsonl",
    "lora_r": 8,
    "quant_bits": 8,
    "learning_rate": 1e-4,
    "num_epochs": 4,
    "batch_size": 8,
    "gradient_accumulation_steps": 2,
    "lora_alpha": 16,
    "peft_use_dora": True,
}


def write(tmp_path: Path, **configs: Any) -> Path:
    file = tmp_path / "configs.json"
    file.write_text(json.dumps(configs))
    return file


def test_a_finlora_file_works_unchanged(tmp_path: Path) -> None:
    config = load_config("sentiment", write(tmp_path, sentiment=FINLORA), {})
    assert config.quantization is Quantization.INT8
    assert config.variant == "8bits_r8_dora"
    assert config.dataset_path == ["../data/train/finlora_sentiment_train.jsonl"]


@pytest.mark.parametrize(
    ("fields", "variant"),
    [
        ({"quant_bits": 4, "lora_r": 4}, "4bits_r4"),
        ({"quant_bits": 16}, "fp16_r8"),
        ({"quant_bits": 8, "peft_use_rslora": True}, "8bits_r8_rslora"),
    ],
)
def test_variants_are_named_as_finlora_does(fields: dict[str, Any], variant: str) -> None:
    assert TrainingConfig(**fields).variant == variant


def test_unknown_key_gets_the_nearest_name(tmp_path: Path) -> None:
    file = write(tmp_path, a={**FINLORA, "learning_rat": 1})
    with pytest.raises(ConfigError, match="'learning_rat'; did you mean 'learning_rate'"):
        load_config("a", file, {})


def test_unknown_configuration_gets_the_nearest_name(tmp_path: Path) -> None:
    file = write(tmp_path, sentiment=FINLORA)
    with pytest.raises(ConfigError, match="'sentimnt'; did you mean 'sentiment'"):
        load_config("sentimnt", file, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_bits", "5"),
        ("lora_r", "0"),
        ("lora_r", "513"),
        ("seed", "-1"),
        ("seed", "99999999999999999999"),
        ("learning_rate", "-1"),
        ("learning_rate", "NaN"),
        ("num_epochs", "many"),
        ("val_fraction", "1"),
        ("lora_target_modules", "everything"),
        ("init_lora_weights", "pissa"),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config("a", write(tmp_path, a=FINLORA), {key: value})


def test_settings_go_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, a=FINLORA)
    overrides = {"lora_r": "4", "dataset_path": "/rows.jsonl", "label_names": '["up", "down"]'}
    config = load_config("a", file, overrides)
    assert (config.lora_r, config.dataset_path) == (4, ["/rows.jsonl"])
    assert config.label_names == ["up", "down"]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "[" * 100_000])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "configs.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"configs\.json"):
        read_configs(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_configs(tmp_path / "none.json")


def test_shipped_configurations_are_valid() -> None:
    configs = read_configs(SHIPPED_CONFIGS)
    for name in configs:
        load_config(name, SHIPPED_CONFIGS, {})
    for name in ("tweet-sentiment", "news-sentiment"):
        config = load_config(name, SHIPPED_CONFIGS, {})
        assert config.template is not None
        assert config.licence


@pytest.mark.parametrize("base", ["llama_3_1_8b", "smollm2_135m"])
@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"tweets"}))
@pytest.mark.parametrize("variant", VARIANTS)
def test_finloras_names_are_there(task: str, base: str, variant: str) -> None:
    config = load_config(f"{task}_{base}_{variant}", SHIPPED_CONFIGS, {})
    assert config.variant == variant
    assert config.base_model == BASES[base]
    assert config.dataset_path == [f"data/train/{TASKS[task].train_file}"]
    assert config.lora_target_modules == "all-linear"


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "configs.yaml"
    file.write_text(yaml.safe_dump({"a": FINLORA}))
    assert load_config("a", file, {}) == load_config("a", write(tmp_path, a=FINLORA), {})
    file.write_text("a:\n  learning_rate: 1e-4\n  label_values: {0: down, 1: up}\n")
    config = load_config("a", file, {})
    assert config.learning_rate == 1e-4
    assert config.label_values == {"0": "down", "1": "up"}


@pytest.mark.parametrize("content", ["a: [", "- a", "a: !!python/object:os.system {}", "a: 1"])
def test_broken_yaml_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "configs.yml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"configs\.yml"):
        read_configs(file)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"init_lora_weights": "orthogonal", "lora_r": 3}, "lora_r must be even"),
        ({"early_stopping": 2, "eval_steps": 0}, "needs evaluations"),
        ({"initial_adapter": "a", "init_lora_weights": "eva"}, "both say where to start"),
        ({"init_lora_weights": "qera", "quant_bits": 16}, "quant_bits must be 4"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config("a", write(tmp_path, a=FINLORA | fields), {})


def test_a_revision_belongs_to_the_base() -> None:
    config = TrainingConfig(base_model="owner/base", base_revision="v2")
    assert config.base_reference == "owner/base@v2"
    assert TrainingConfig().base_reference == TrainingConfig().base_model
