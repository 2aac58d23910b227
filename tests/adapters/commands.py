"""Calls `finlora adapters` in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from finlora.adapters import cli


def run_json(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> Any:
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)
