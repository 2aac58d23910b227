import sys
from pathlib import Path

import pytest

from loadtest.peers.in_process import ChildEngine
from loadtest.peers.load import Load
from loadtest.peers.process import ServerFailedError

LOAD = Load(models=("base",))
READY = "import sys; print('{}', flush=True); "
# More than a pipe holds, so that it cannot be written without a reader.
PROMPTS = ["p" * 100_000]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("sys.exit('out of memory')", "out of memory"),
        ("sys.stdin.close(); sys.exit('closed')", "closed"),
        ("sys.stdin.readline(); sys.exit('killed')", "killed"),
        ("sys.stdin.readline(); sys.stdout.write('{\"half'); sys.exit('torn')", "torn"),
    ],
)
def test_an_engine_that_ends_is_a_failed_server(after: str, words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READY + after]
    with (
        ChildEngine.started(command, tmp_path / "log") as child,
        pytest.raises(ServerFailedError, match=words),
    ):
        child.measure(LOAD, PROMPTS)
