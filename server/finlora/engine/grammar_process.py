"""Grammars that were compiled by a process of their own before this one compiles them.

A short schema can take llguidance minutes, and a grammar of a few thousand rules overflows its
stack: no thread can be stopped then, but a process can.
"""

import json
import os
import select
import subprocess
import sys
from dataclasses import asdict

from finlora.engine.constraints import Grammar, GrammarKind
from finlora.engine.guidance import GuidanceCompiler, TokenizerFacts
from finlora.errors import InvalidSamplingParamsError

# The process is stopped by its own limits, which count CPU time; this is for a machine that stalls.
ANSWER_SECONDS = 60.0
MODULE = "finlora.engine.grammar_check"


class CheckedCompiler:
    """Compiles grammars for one base, in one thread; owns the process that goes first."""

    def __init__(self, facts: TokenizerFacts) -> None:
        self._facts = facts
        self._compiler = GuidanceCompiler(facts)
        self._process: subprocess.Popen[str] | None = None

    def compile(self, kind: GrammarKind, source: str) -> Grammar:
        """A grammar that can begin. Raises InvalidSamplingParamsError with the reason."""
        error = self._ask(kind, source)
        if error is not None:
            raise InvalidSamplingParamsError(error, param="grammar")
        return self._compiler.compile(kind, source)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, kind: GrammarKind, source: str) -> str | None:
        process = self._running()
        answer = _exchange(process, {"kind": kind.value, "source": source})
        if not answer:
            self.close()
            return "takes too much time or memory to compile"
        error: str | None = json.loads(answer)["error"]
        return error

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = _start()
            _send(self._process, asdict(self._facts))
        return self._process


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        # Some launchers put folders on the path of their own process only.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _exchange(process: subprocess.Popen[str], message: dict[str, object]) -> str:
    """The answer to a message; empty when the process ended or gave none in time."""
    assert process.stdout is not None
    try:
        _send(process, message)
    except BrokenPipeError:
        return ""
    ready, _, _ = select.select([process.stdout], [], [], ANSWER_SECONDS)
    return process.stdout.readline() if ready else ""


def _send(process: subprocess.Popen[str], message: dict[str, object]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
