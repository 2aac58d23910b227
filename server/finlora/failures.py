"""How a command ends: an exit code, and for a failure one sentence with the next step."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

from finlora.errors import AdapterNotFoundError, FinLoRAError


class ExitCode(IntEnum):
    """What `finlora` exits with."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    PARTLY = 3
    FAULT = 70  # EX_SOFTWARE of BSD's sysexits
    INTERRUPTED = 130  # 128 + SIGINT, what shells expect
    PIPE_CLOSED = 141  # 128 + SIGPIPE


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "not done, or something checked is not in order; the reason is told",
    ExitCode.WRONG_USAGE: "wrong usage",
    ExitCode.PARTLY: "done, but some rows or requests have errors",
    ExitCode.FAULT: "a fault in finlora itself",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.PIPE_CLOSED: "whoever read the output went away",
}
# What helps at the command line, where the error itself is also sent to HTTP clients.
NEXT_STEPS: dict[type[FinLoRAError], str] = {
    AdapterNotFoundError: "`finlora adapters list` shows what there is",
}


def run(program: str, command: Callable[[], int], *, debug: bool) -> int:
    """Run a command to its exit code; with `debug` failures show their traceback too."""
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return ExitCode.PIPE_CLOSED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, sentence = told(error)
        sys.stderr.write(f"{program}: {sentence}\n")
    return code


def told(error: Exception) -> tuple[ExitCode, str]:
    """The exit code and the sentence for a failure."""
    if isinstance(error, FinLoRAError):
        step = NEXT_STEPS.get(type(error))
        return ExitCode.FAILED, _one_line(str(error)) + ("" if step is None else f"; {step}")
    if isinstance(error, ModuleNotFoundError):
        return ExitCode.FAILED, f"{error}: install finlora with its dependencies again"
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return ExitCode.FAILED, f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return ExitCode.FAILED, "not enough memory: try a smaller --kv-cache-bytes or --max-loras"
    what = _one_line(f"{type(error).__name__}: {error}")
    return ExitCode.FAULT, f"unexpected {what}; run again with --debug and report what it shows"


def debug_wanted() -> bool:
    """Whether FINLORA_DEBUG asks for tracebacks."""
    return os.environ.get("FINLORA_DEBUG", "").lower() in ("1", "true", "yes", "on")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _drop_output() -> None:
    """Python flushes standard output once more when it ends: let that go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
