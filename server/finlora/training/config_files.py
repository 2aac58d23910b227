"""Files of named configurations, JSON or YAML, and the settings that go over them."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finlora.errors import ConfigError
from finlora.training.config import TrainingConfig

SHIPPED_CONFIGS = Path(__file__).parent / "finetune_configs.json"
YAML_SUFFIXES = (".yaml", ".yml")


def load_config(name: str, file: Path, overrides: Mapping[str, str]) -> TrainingConfig:
    """The configuration of that name with `key=value` settings on top.

    Values of settings are JSON where they can be, else text. Raises ConfigError.
    """
    configs = read_configs(file)
    if name not in configs:
        near = _nearest(name, configs) or "; `finlora train --list` shows what there is"
        raise ConfigError(f"{file} has no configuration {name!r}{near}")
    fields = {**configs[name], **{key: _value(text) for key, text in overrides.items()}}
    return _parse(name, fields)


def read_configs(file: Path) -> dict[str, dict[str, Any]]:
    """Every configuration of a file, as written. Raises ConfigError."""
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text") from error
    is_yaml = file.suffix.lower() in YAML_SUFFIXES
    try:
        configs = (_yaml_loader() if is_yaml else json.loads)(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not {'YAML' if is_yaml else 'JSON'}: {error}") from error
    if not isinstance(configs, dict) or not all(isinstance(c, dict) for c in configs.values()):
        raise ConfigError(f"{file} must be an object of named configurations")
    return {str(name): fields for name, fields in configs.items()}


def _yaml_loader() -> Callable[[str], Any]:
    # Not a JSON file's business: reading one must not wait for it.
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 would read 1e-4 as a text; 1.2, and everyone who writes it, means a number."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"),
        list("-+.0123456789"),
    )

    def load(text: str) -> Any:
        try:
            return yaml.load(text, Loader)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error

    return load


def _parse(name: str, fields: Mapping[str, Any]) -> TrainingConfig:
    for key in fields:
        if key not in TrainingConfig.model_fields:
            raise ConfigError(
                f"{name}: unknown key {key!r}{_nearest(str(key), TrainingConfig.model_fields)}"
            )
    try:
        return TrainingConfig.model_validate(fields)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{name}: " + "; ".join(lines)) from error


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
