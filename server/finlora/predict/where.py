"""Where a command does its work: in an engine here, with its settings, or on a running server."""

import argparse
from typing import Any

from finlora.config import Settings, load_settings
from finlora.errors import ConfigError
from finlora.flags import ENGINE_SETTINGS

SETTINGS = ("registry", "strict", *ENGINE_SETTINGS)


def engine_settings(args: argparse.Namespace) -> Settings:
    """For the engine here. Raises ConfigError."""
    return load_settings(**_given(args))


def server_key(args: argparse.Namespace) -> str | None:
    """For the server at `--url`, which takes no settings from here. Raises ConfigError."""
    useless = [name for name, value in _given(args).items() if value is not None]
    if useless:
        raise ConfigError(f"--{useless[0].replace('_', '-')} is for the engine here, not for --url")
    key = load_settings().api_key
    return None if key is None else key.get_secret_value()


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SETTINGS}
