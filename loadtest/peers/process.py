"""A server as a child process: free port, log file, readiness by polling, an end to all its own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from loadtest.server_api import opener

POLL_SECONDS = 0.05
STOP_SECONDS = 30.0
# glibc's default thresholds send large activations through mmap every time; `make serve` sets
# these, so every server in a comparison gets them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}


class ServerFailedError(Exception):
    """The server ended, did not get ready in time or does not answer; the text tells which."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    address: str
    seconds_to_ready: float
    log: Path

    def ending(self) -> str | None:
        """How its process ended; None: it runs."""
        return ending(self.process, self.log)

    def resident_bytes(self) -> int:
        """Resident memory of the process and of everything it started."""
        root = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [root, *root.children(recursive=True)])


@contextmanager
def serving(
    command: list[str],
    *,
    port: int,
    ready_path: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    deadline_seconds: float = 300.0,
) -> Iterator[Server]:
    """Start `command`, wait until `ready_path` says 200, and end its whole process group after.

    Raises ServerFailedError.
    """
    address = f"http://127.0.0.1:{port}"
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=server_environment(environment),
            start_new_session=True,
        )
        try:
            while not _answers(address + ready_path):
                waited = time.perf_counter() - begin
                if (words := ending(process, log)) is not None:
                    raise ServerFailedError(words)
                if waited > deadline_seconds:
                    raise ServerFailedError(
                        _told(process, log, f"was not ready after {waited:.0f} s")
                    )
                time.sleep(POLL_SECONDS)
            yield Server(process, address, time.perf_counter() - begin, log)
        finally:
            end(process)


def server_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, the allocator's, and the server's own."""
    return {**os.environ, **ALLOCATOR, **(extra or {})}


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> str:
    """What a server of this machine answers there. Raises ServerFailedError."""
    try:
        with opener().open(url, timeout=30) as response:
            return str(response.read().decode())
    except (OSError, HTTPException) as error:
        raise ServerFailedError(f"{url}: {error}") from error


def _answers(url: str) -> bool:
    try:
        with opener().open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def ending(process: "subprocess.Popen[Any]", log: Path) -> str | None:
    """How it ended, with its last log lines; None: it runs."""
    code = process.poll()
    return None if code is None else _told(process, log, f"ended with code {code}")


def _told(process: "subprocess.Popen[Any]", log: Path, what: str) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    assert isinstance(process.args, list)
    return f"{' '.join(map(str, process.args))} {what}:\n{tail}"


def end(process: "subprocess.Popen[Any]") -> None:
    """Ask the group politely, then insist; the group is ours because it is a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
