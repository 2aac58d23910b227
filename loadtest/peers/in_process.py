"""The engine without HTTP under the comparison's loads, in a process of its own.

The child reads one load with its prompts as a JSON line from standard input, runs it in a closed
loop, and writes one JSON line. Prompts are tokenised before the clock starts: what a server adds to
the engine is HTTP, JSON, tokenising, and handing over between threads.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from finlora.adapters.registry import AdapterRegistry
from finlora.bases.quiet import quiet_libraries
from finlora.config import load_settings
from finlora.flags import add_settings_flags
from loadtest.peers.load import Load, Mix, Result, Tally, summarise, turns
from loadtest.peers.process import ServerFailedError, end, ending, server_environment


class ChildEngine:
    """The parent's side."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid
        begin = time.perf_counter()
        self._read()
        self.seconds_to_ready = time.perf_counter() - begin

    @classmethod
    @contextmanager
    def started(cls, command: list[str], log: Path) -> Iterator[Self]:
        """Start the child and end it after. Raises ServerFailedError."""
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=server_environment(),
                start_new_session=True,
            )
            try:
                yield cls(process, log)
            finally:
                end(process)
                for pipe in (process.stdin, process.stdout):
                    # What a child that is gone did not read cannot be written any more.
                    with suppress(BrokenPipeError):
                        if pipe is not None:
                            pipe.close()

    def ending(self) -> str | None:
        """How the child ended; None: it runs."""
        return ending(self._process, self._log)

    def measure(self, load: Load, prompts: list[str]) -> Result:
        """Have the child run a load. Raises ServerFailedError."""
        assert self._process.stdin is not None
        order = json.dumps({"load": asdict(load), "prompts": prompts})
        # A child that is gone has no answer, which is the better place to say so.
        with suppress(BrokenPipeError):
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        return Result(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise ServerFailedError(f"the engine's process ended:\n{self._log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(settings_flags: dict[str, Any]) -> None:
    """The child's side: one line out when ready, then one for each line in."""
    # Imported here: the parent needs neither torch nor the engine.
    from finlora.bench.subject import subject_of

    settings = load_settings(**settings_flags)
    assert settings.registry is not None
    registry = AdapterRegistry(settings.registry)
    with subject_of(settings, registry) as subject:
        _write({})
        for line in sys.stdin:
            order = json.loads(line)
            load = Load(**{**order["load"], "mix": Mix(order["load"]["mix"])})
            _write(asdict(_run(subject.driver, registry, load, order["prompts"])))


def _run(driver: Any, registry: AdapterRegistry, load: Load, prompts: list[str]) -> Result:
    from finlora.bench.driver import Work
    from finlora.prompts import encode_prompt

    engine = driver.engine
    base = engine.spec.name
    adapters = [None if name == base else registry.resolve(name) for name in load.models]
    works = [
        Work(encode_prompt(engine.tokenizer, prompt), adapters[turn], load.max_tokens)
        for turn, prompt in zip(turns(load), prompts, strict=False)
    ]
    driver.closed_loop(works[: load.warmup], load.clients)
    found = driver.closed_loop(works[load.warmup :], load.clients)
    tally = Tally(found.latencies, [], found.num_prompt_tokens, found.num_cached_tokens)
    return summarise(tally, found.seconds)


def _write(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run loads from standard input until it ends."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers.in_process")
    add_settings_flags(parser)
    quiet_libraries()
    serve(vars(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
