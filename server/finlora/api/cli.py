"""`finlora serve`: flags from the settings, one listening socket, and a stop that loses nothing."""

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import time
from collections.abc import Callable

import uvicorn
from rich.console import Console
from rich.text import Text

from finlora.api.app import app_of
from finlora.api.auth import check_exposure
from finlora.api.heads import BoundedHeads
from finlora.api.runner import Server
from finlora.api.state import ServerState
from finlora.api.trace_setup import make_tracer
from finlora.api.welcome import welcome
from finlora.config import LogFormat, Settings, load_settings
from finlora.errors import ConfigError
from finlora.flags import add_settings_flags
from finlora.logs import configure_logging, log_event
from finlora.usage import Parser

logger = logging.getLogger("finlora.serve")

BACKLOG = 2048
# Longer than clients and proxies keep an idle connection, so that it is they who close it.
KEEP_ALIVE_SECONDS = 75


class _Greeter(Console):
    """A console whose reader may leave, as that of `finlora serve | head -1` does."""

    def on_broken_pipe(self) -> None:
        """Go on without a word: rich goes quiet, and then would end the thread that spoke."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


def main(argv: list[str]) -> int:
    """Serve until a signal comes. Raises FinLoRAError when the server cannot start."""
    settings = load_settings(**vars(parser().parse_args(argv)))
    check_exposure(settings)
    configure_logging(settings.log_format, settings.log_level, sys.stderr)
    with _listen(settings) as listener:
        _serve(settings, listener, _console(settings))
    return 0


def parser() -> Parser:
    """The options of `finlora serve`."""
    parser = Parser(
        prog="finlora serve",
        description="Serve one base model and its adapters over OpenAI's HTTP API.",
        epilog="Every flag can be given as FINLORA_<NAME> in the environment, or in the TOML file "
        "that FINLORA_CONFIG names. Keys belong into the environment: flags show in process lists.",
    )
    add_settings_flags(parser)
    return parser


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends answers at once only on sockets that say they are TCP; else their last part
    # waits 40 ms for the client's delayed acknowledgement. uvloop always does.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "--port 0 takes a free one, --host another address"
        ) from error
    return listener


def _console(settings: Settings) -> Console | None:
    """Where people are greeted; None: whoever reads JSON gets lines of JSON only."""
    return _Greeter(highlight=False) if settings.log_format is LogFormat.TEXT else None


def _phase_reporter(console: Console | None) -> Callable[[str], None]:
    started = time.monotonic()

    def report(phase: str) -> None:
        passed = time.monotonic() - started
        if console is None:
            log_event(logger, logging.INFO, "starting", phase=phase, seconds=round(passed, 3))
        else:
            line = Text.assemble((f"{passed:6.1f} s  ", "dim"), phase)
            console.print(line, soft_wrap=True)

    return report


def _serve(settings: Settings, listener: socket.socket, console: Console | None) -> None:
    tracer = make_tracer(settings)
    state = ServerState(settings, on_phase=_phase_reporter(console))
    config = uvicorn.Config(
        app_of(state, tracer),
        http=BoundedHeads,
        backlog=BACKLOG,
        # Its lines go where ours go; of requests we tell ourselves.
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Ours ends first, so that whoever is cut off is told so.
        timeout_graceful_shutdown=settings.shutdown_seconds + 5,
    )
    server = Server(config, state)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve_until_stopped(server, state, listener, console))
    if tracer is not None:
        tracer.close()


async def _serve_until_stopped(
    server: Server, state: ServerState, listener: socket.socket, console: Console | None
) -> None:
    announcing = asyncio.create_task(_announce(server, state, listener, console))
    await server.serve(sockets=[listener])
    if announcing.done():
        announcing.result()
    announcing.cancel()


async def _announce(
    server: Server, state: ServerState, listener: socket.socket, console: Console | None
) -> None:
    """Say how to use the server once it is ready; end it when it cannot be."""
    try:
        await state.loaded()
    except Exception:
        server.should_exit = True
        raise
    # What was loaded stays until the end, so no collection has to look at it again.
    gc.freeze()
    host, port = listener.getsockname()[:2]
    base, adapters = state.engine.spec.name, state.adapters()
    if console is None:
        address = {"host": host, "port": port}
        log_event(logger, logging.INFO, "ready", **address, base=base, num_adapters=len(adapters))
        return
    for line in welcome(host, port, base, adapters, key=state.settings.api_key is not None):
        console.print(line, markup=False, soft_wrap=True)
