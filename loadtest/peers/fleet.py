"""The servers of a run: started when first needed, all up at the same time, one of them awake.

Some servers poll when they have nothing to do. So the processes of all but the measured one are
stopped by SIGSTOP and take neither time nor memory bandwidth.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self

import psutil

from loadtest.peers.candidates import Candidate
from loadtest.peers.in_process import ChildEngine
from loadtest.peers.load import Load, Result, measure
from loadtest.peers.process import Server, ServerFailedError, free_port, serving


class Target(Protocol):
    """Something that a load can be put on."""

    @property
    def pid(self) -> int: ...
    @property
    def seconds_to_ready(self) -> float: ...

    def ending(self) -> str | None: ...

    def measure(self, load: Load, prompts: list[str]) -> Result: ...


class HTTPTarget:
    """A server that answers over loopback."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pid = server.process.pid
        self.seconds_to_ready = server.seconds_to_ready

    def ending(self) -> str | None:
        """How its process ended; None: it runs."""
        return self.server.ending()

    def measure(self, load: Load, prompts: list[str]) -> Result:
        """Put the load on it."""
        return asyncio.run(measure(f"{self.server.address}/v1", load, prompts))


class Fleet:
    """Owns the processes; ends them all on exit."""

    def __init__(
        self, candidates: Mapping[str, Candidate], output: Path, say: Callable[[str], None]
    ) -> None:
        self.candidates = candidates
        self._output = output
        self._say = say
        self._running: dict[str, tuple[Target, ExitStack]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(set())

    def get(self, name: str) -> Target:
        """The running server of that name.

        Raises ServerFailedError when it cannot be started, and as `check` does.
        """
        if name in self._running:
            self.check(name)
        else:
            stack = ExitStack()
            target = stack.enter_context(_started(self.candidates[name], self._output))
            self._running[name] = target, stack
            self._say(f"{name} ready after {target.seconds_to_ready:.1f} s")
        return self._running[name][0]

    def check(self, name: str) -> None:
        """Raises ServerFailedError when that server has ended; `get` starts it anew thereafter."""
        words = self._running[name][0].ending()
        if words is not None:
            self._end(name)
            raise ServerFailedError(words)

    def focus(self, name: str) -> Target:
        """The server, running, while all others stand still. Raises ServerFailedError."""
        for other, (target, _) in self._running.items():
            if other != name:
                os.killpg(target.pid, signal.SIGSTOP)
                # Until it stands still, or has ended; its end is for others to collect.
                os.waitid(os.P_PID, target.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        target = self.get(name)
        os.killpg(target.pid, signal.SIGCONT)
        return target

    def keep(self, names: set[str]) -> None:
        """End the servers that are not among `names`, and forget those that ended by themselves."""
        for name, (target, _) in list(self._running.items()):
            if name not in names or target.ending() is not None:
                self._end(name)

    def _end(self, name: str) -> None:
        target, stack = self._running.pop(name)
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(target.pid, signal.SIGCONT)  # a stopped process cannot end in order
        stack.close()

    def resident_bytes(self, name: str) -> int:
        """Resident memory of a running server and all it started. Raises ServerFailedError."""
        return sum(process.memory_info().rss for process in _family(self.get(name).pid))

    def others_cpu_seconds(self, name: str) -> float:
        """CPU time that all servers but one have used so far: it must not grow."""
        pids = [target.pid for other, (target, _) in self._running.items() if other != name]
        times = (process.cpu_times() for pid in pids for process in _family(pid))
        return sum(time.user + time.system for time in times)


def _family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


@contextmanager
def _started(candidate: Candidate, output: Path) -> Iterator[Target]:
    log = output / f"{candidate.name}.log"
    if candidate.in_process:
        with ChildEngine.started(candidate.command(0), log) as child:
            yield child
        return
    port = free_port()
    with serving(
        candidate.command(port),
        port=port,
        ready_path=candidate.ready_path,
        log=log,
        environment=candidate.environment,
    ) as server:
        yield HTTPTarget(server)
