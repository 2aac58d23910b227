"""The server under test: one that runs already, or one started for the test and ended with it."""

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from finlora.config import DEFAULT_BASE
from loadtest.peers.process import free_port, serving
from loadtest.server_api import ServerAPI
from loadtest.targets import check_target

REGISTRIES = Path("build/bench-registries")
LOG = "server.log"


@dataclass(frozen=True, slots=True)
class Subject:
    """Which server; with `url` the rest does not matter."""

    url: str | None
    allow_remote: bool
    model: str
    num_adapters: int  # random ones; 0: what the project's registry has
    num_broken: int
    server_args: tuple[str, ...]
    registries: Path


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    api: ServerAPI
    broken: tuple[str, ...]


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """The options of `subject_of`."""
    group = parser.add_argument_group("the server")
    add = group.add_argument
    add("--url", help="one that runs already, instead of one started for the test")
    add("--allow-remote", action="store_true", help="--url may be another machine")
    add("--model", default=DEFAULT_BASE, help="embedded base, local folder or hub id")
    add("--adapters", type=int, help="random adapters; 0: those of the registry (default: 8)")
    add("--server-args", default="", help="further flags for `finlora serve`")
    add("--registries", type=Path, default=REGISTRIES, help="where random adapters are kept")


def subject_of(options: argparse.Namespace, *, adapters: int = 8, num_broken: int = 0) -> Subject:
    """From parsed options; `adapters` where they do not tell how many."""
    return Subject(
        url=options.url,
        allow_remote=options.allow_remote,
        model=options.model,
        num_adapters=adapters if options.adapters is None else options.adapters,
        num_broken=num_broken,
        server_args=tuple(shlex.split(options.server_args)),
        registries=options.registries,
    )


def end_in_order() -> None:
    """Let SIGTERM unwind this process, so that it ends what it started."""
    signal.signal(signal.SIGTERM, _unwind)


def _unwind(number: int, _: object) -> None:
    # `timeout` and `make` both signal: the second must not break off the end that the first began.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


@contextmanager
def served(subject: Subject, output: Path) -> Iterator[Running]:
    """The server, ready; its log goes to the output folder.

    Raises LoadTestError for an address that is not allowed, ServerFailedError when it does not
    start.
    """
    key = os.environ.get("FINLORA_API_KEY")
    if subject.url is not None:
        address = check_target(subject.url, allow_remote=subject.allow_remote)
        yield Running(ServerAPI(address, key), ())
        return
    with _registry(subject) as (registry, broken):
        port = free_port()
        command = [sys.executable, "-m", "finlora", "serve", "--model", subject.model]
        command += ["--registry", str(registry)] if registry else []
        command += [*subject.server_args, "--port", str(port)]
        with serving(command, port=port, ready_path="/ready", log=output / LOG) as server:
            yield Running(ServerAPI(server.address, key), broken)


@contextmanager
def _registry(subject: Subject) -> Iterator[tuple[Path | None, tuple[str, ...]]]:
    """The registry to serve and the names in it whose files are broken."""
    if not subject.num_adapters:
        yield None, ()
        return
    # These import torch, which a test of a running server does not need.
    from finlora.model import base_spec
    from loadtest.broken import add_broken
    from loadtest.registries import large_registry

    spec = base_spec(subject.model)
    kept = large_registry(subject.registries, spec, (), subject.num_adapters)
    if not subject.num_broken:
        yield kept, ()
        return
    with TemporaryDirectory(dir=subject.registries, prefix=".broken-") as folder:
        copy = copy_registry(kept, Path(folder) / "registry")
        yield copy, add_broken(copy, spec, subject.num_broken)


def copy_registry(source: Path, target: Path) -> Path:
    """A copy that may be changed; takes no more room, as weights are linked."""
    return Path(shutil.copytree(source, target, copy_function=_link))


def _link(source: str, target: str) -> str:
    """Registered weights are never written to; what is, is copied."""
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))
