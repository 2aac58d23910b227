"""A writer killed at any moment leaves the registry as it was or as it should be."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_writer_killed_at_any_file_operation_leaves_a_sound_registry(tmp_path: Path) -> None:
    program = Path(__file__).with_name("crash_points.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert kills.keys() == {
        *("register", "replace", "promote", "rollback", "remove", "alias", "prune")
    }
    assert all(num >= 5 for num in kills.values()), kills
