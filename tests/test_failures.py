"""Exit codes and sentences, and an output that nobody reads to its end."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from finlora.errors import AdapterNotFoundError, ConfigError
from finlora.failures import MEANINGS, ExitCode, run

WRITER = """
import sys
from finlora.failures import run
def write():
    for number in range(100_000):
        print(number)
    return 0
sys.exit(run("test", write, debug=False))
"""


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    yield
    logging.getLogger("finlora").setLevel(logging.NOTSET)


def fail(error: BaseException) -> int:
    def command() -> int:
        raise error

    return run("finlora test", command, debug=False)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("a setting\nis  wrong"), 1, "a setting is wrong"),
        (AdapterNotFoundError("no x"), 1, "no x; `finlora adapters list` shows what there is"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "a.csv: No such file"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ModuleNotFoundError("No module named 'x'"), 1,
         "No module named 'x': install finlora with its dependencies again"),
        (MemoryError(), 1, "not enough memory: try a smaller --kv-cache-bytes or --max-loras"),
        (KeyError("x"), 70,
         "unexpected KeyError: 'x'; run again with --debug and report what it shows"),
    ],
)  # fmt: skip
def test_a_failure_is_one_sentence(
    error: Exception, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error) == code
    assert capsys.readouterr().err == f"finlora test: {sentence}\n"


def test_an_interrupt_needs_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(KeyboardInterrupt()) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_is_quiet() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    os.read(child.stdout.fileno(), 10)
    child.stdout.close()
    assert child.stderr is not None
    told = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == ExitCode.PIPE_CLOSED
    assert told == b""


def test_every_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode)
