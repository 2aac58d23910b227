"""Whom requests are sent to: the server's own application in this process, or a running server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from finlora.config import Settings
from finlora.server_url import server_url

TIMEOUT_SECONDS = 3600


@asynccontextmanager
async def in_process(settings: Settings, concurrency: int) -> AsyncIterator[httpx.AsyncClient]:
    """The very application that `finlora serve` runs, without a socket. Raises FinLoRAError."""
    # Imported here: a server that runs already needs neither the framework nor torch.
    from finlora.api.app import app_of
    from finlora.api.protocol.fields import MAX_SEQUENCES
    from finlora.api.state import ServerState

    # Nobody else sends: the queue has room for all that is sent at a time.
    num_sent = max(settings.max_num_waiting, concurrency * MAX_SEQUENCES)
    own_settings = settings.model_copy(update={"api_key": None, "max_num_waiting": num_sent})
    state = ServerState(own_settings, on_phase=lambda phase: None)
    app = app_of(state)
    async with app.router.lifespan_context(app):
        await state.loaded()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", timeout=TIMEOUT_SECONDS
        ) as client:
            yield client


@asynccontextmanager
async def remote(url: str, key: str | None, concurrency: int) -> AsyncIterator[httpx.AsyncClient]:
    """A running server. Raises ConfigError."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=concurrency)
    client = httpx.AsyncClient(
        base_url=server_url(url), headers=headers, limits=limits, timeout=TIMEOUT_SECONDS
    )
    async with client:
        yield client
