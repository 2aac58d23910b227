"""Which settings are options of which command."""

from importlib import import_module

import pytest

from finlora.cli import COMMANDS
from finlora.config import Settings


def flags_of(command: str) -> set[str]:
    parser = import_module(COMMANDS[command][0]).parser()
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("command", ["predict", "batch", "bench"])
def test_an_engine_without_a_server_has_the_engines_settings_only(command: str) -> None:
    servers = {"--host", "--log-format", "--log-level", "--log-prompts", "--otlp-endpoint"}
    assert not servers & flags_of(command)
    assert {"--model", "--max-num-seqs", "--kv-cache-bytes"} <= flags_of(command)


def test_a_server_has_all_settings() -> None:
    every = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert every <= flags_of("serve")
