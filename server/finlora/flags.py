"""Command-line flags made from the settings, so that every command calls them the same."""

import argparse
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from finlora.config import Settings

# Settings of the HTTP server, its log and the registry; all others are the engine's.
NOT_THE_ENGINES = {
    "host",
    "port",
    "api_key",
    "admin_key",
    "insecure",
    "max_body_bytes",
    "shutdown_seconds",
    "metrics_max_adapters",
    "log_format",
    "log_level",
    "log_prompts",
    "otlp_endpoint",
    "registry",
    "strict",
    "default_adapter",
    "max_num_waiting",
}
ENGINE_SETTINGS = tuple(name for name in Settings.model_fields if name not in NOT_THE_ENGINES)


def add_settings_flags(
    parser: argparse._ActionsContainer, names: Iterable[str] = tuple(Settings.model_fields)
) -> None:
    """A flag for each of the settings; None in the result means that it was not given."""
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", **_argument(Settings.model_fields[name]))


def _argument(field: FieldInfo) -> dict[str, Any]:
    """How argparse reads one setting; None means that the flag was not given."""
    members = get_args(field.annotation)  # of `X | None`
    kind: Any = members[0] if members else field.annotation
    shown = "" if field.default is None else f" (default: {field.default})"
    options: dict[str, Any] = {"default": None, "help": f"{field.description}{shown}"}
    if kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return options | {"choices": [choice.value for choice in kind]}
    if kind in (int, Path):
        return options | {"type": kind, "metavar": "N" if kind is int else "FOLDER"}
    return options | {"metavar": "TEXT"}
