"""`finlora serve`: flags from the settings, one listening socket, and a stop that loses nothing."""

import asyncio
import logging
import socket
import time

import uvicorn
from rich.console import Console
from rich.text import Text

from finlora.api.app import app_of
from finlora.api.auth import check_exposure
from finlora.api.runner import Server
from finlora.api.state import ServerState
from finlora.api.welcome import welcome
from finlora.config import Settings, load_settings
from finlora.errors import ConfigError
from finlora.flags import add_settings_flags
from finlora.usage import Parser

BACKLOG = 2048
# Longer than clients and proxies keep an idle connection, so that it is they who close it.
KEEP_ALIVE_SECONDS = 75


def main(argv: list[str]) -> int:
    """Serve until a signal comes. Raises FinLoRAError when the server cannot start."""
    settings = load_settings(**vars(parser().parse_args(argv)))
    check_exposure(settings)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # A first start downloads and quantises the base for tens of seconds: say so.
    logging.getLogger("finlora.bases").setLevel(logging.INFO)
    with _listen(settings) as listener:
        _serve(settings, listener, Console(highlight=False))
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
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    return listener


def _serve(settings: Settings, listener: socket.socket, console: Console) -> None:
    started = time.monotonic()

    def show(phase: str) -> None:
        seconds = (f"{time.monotonic() - started:6.1f} s  ", "dim")
        console.print(Text.assemble(seconds, phase), soft_wrap=True)

    state = ServerState(settings, on_phase=show)
    config = uvicorn.Config(
        app_of(state),
        backlog=BACKLOG,
        log_level="warning",
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


async def _serve_until_stopped(
    server: Server, state: ServerState, listener: socket.socket, console: Console
) -> None:
    announcing = asyncio.create_task(_announce(server, state, listener, console))
    await server.serve(sockets=[listener])
    if announcing.done():
        announcing.result()
    announcing.cancel()


async def _announce(
    server: Server, state: ServerState, listener: socket.socket, console: Console
) -> None:
    """Say how to use the server once it is ready; end it when it cannot be."""
    try:
        await state.loaded()
    except Exception:
        server.should_exit = True
        raise
    host, port = listener.getsockname()[:2]
    lines = welcome(
        host, port, state.engine.spec.name, state.adapters(), key=state.settings.api_key is not None
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
