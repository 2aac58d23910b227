"""Settings that are wrong, wherever they come from, are named with their ways in."""

import json
from pathlib import Path

import pytest

from finlora.config import Settings, load_settings
from finlora.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "finlora.toml"
    monkeypatch.setenv("FINLORA_CONFIG", str(file))
    return file


def test_flag_before_variable_before_file(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text("port = 1\nthreads = 2\nmax_loras = 3\n", "utf-8")
    monkeypatch.setenv("FINLORA_PORT", "4")
    monkeypatch.setenv("FINLORA_THREADS", "5")
    settings = load_settings(port=6, threads=None)
    assert (settings.port, settings.threads, settings.max_loras) == (6, 5, 3)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("max_lora = 3", "max_lora is not a setting; did you mean max_loras?"),
        ("quux = 3", r"quux is not a setting$"),
        ("max_loras: 3", "not TOML"),
        ("max_loras = -1", r"max_loras \(--max-loras, FINLORA_MAX_LORAS\): .* not -1"),
    ],
)
def test_a_wrong_file_is_told(content: str, what: str, config_file: Path) -> None:
    config_file.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=what):
        load_settings()


def test_a_file_that_is_not_there_is_told(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings()


def test_a_wrong_variable_is_told_and_a_key_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINLORA_PORT", "many")
    with pytest.raises(ConfigError, match=r"port \(--port, FINLORA_PORT\): .* not 'many'"):
        load_settings()
    with pytest.raises(ConfigError) as told:
        load_settings(port=1, api_key=12345)
    assert "12345" not in str(told.value)


@pytest.mark.parametrize("name", ["api_key", "admin_key", "registry", "otlp_endpoint", "port"])
def test_an_empty_variable_is_one_that_is_not_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FINLORA_{name.upper()}", "")
    monkeypatch.setenv("FINLORA_CONFIG", "")
    assert getattr(load_settings(), name) == Settings.model_fields[name].default


@pytest.mark.parametrize("name", ["api_key", "admin_key"])
@pytest.mark.parametrize("key", ["", " ", "s3cret\n", "s3 cret"])
def test_a_key_that_no_header_can_match_is_refused_and_not_shown(
    name: str, key: str, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text(f"{name} = {json.dumps(key)}", "utf-8")
    with pytest.raises(ConfigError) as from_file:
        load_settings()
    config_file.write_text("", "utf-8")
    with pytest.raises(ConfigError) as from_flag:
        load_settings(**{name: key})
    told = [from_file, from_flag]
    if key:
        monkeypatch.setenv(f"FINLORA_{name.upper()}", key)
        with pytest.raises(ConfigError) as from_variable:
            load_settings()
        told.append(from_variable)
    for error in told:
        assert str(error.value) == (
            f"{name} (--{name.replace('_', '-')}, FINLORA_{name.upper()}): "
            "must not be empty or contain white space"
        )
        # Tracebacks show the cause, too.
        assert "cret" not in str(error.value.__cause__)
