"""The application as other launchers find it: `uvicorn main:app --app-dir server`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finlora.config import Settings

SOURCE_ROOT = Path(__file__).parents[2] / "server"


def test_uvicorn_can_launch_it_and_its_log_says_what_happens(
    settings: Settings, tmp_path: Path
) -> None:
    environment = os.environ | {
        "FINLORA_MODEL": str(tmp_path / "missing"),
        "FINLORA_REGISTRY": str(settings.registry),
    }
    command = [sys.executable, "-m", "uvicorn", "main:app", "--app-dir", str(SOURCE_ROOT)]
    process = subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        logged = ""
        for line in process.stderr:
            logged += line
            if "failed: " in logged and "Uvicorn running on" in logged:
                break
        else:
            pytest.fail(f"uvicorn ended before the loading failed:\n{logged}")
    finally:
        process.kill()
        process.communicate()
