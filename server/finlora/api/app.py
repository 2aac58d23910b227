"""The HTTP application: routers, the key they need, and the engine's life."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

import finlora
from finlora.api import (
    admin,
    chat,
    classify,
    completions,
    errors,
    health,
    models,
    tokenization,
)
from finlora.api.access_log import AccessLog, Tracer
from finlora.api.auth import require_admin_key, require_api_key
from finlora.api.playground import playground_router
from finlora.api.request_ids import RequestIds
from finlora.api.state import ServerState
from finlora.config import Settings


def create_app(settings: Settings) -> FastAPI:
    """An application that loads its engine when it starts."""
    # Whoever launches this is uvicorn or stands in for it: its log is where people look.
    log = logging.getLogger("uvicorn.error")

    def on_failure(error: Exception) -> None:
        log.error("failed: %s", error)

    return app_of(ServerState(settings, on_phase=log.info, on_failure=on_failure))


def app_of(state: ServerState, tracer: Tracer | None = None) -> FastAPI:
    """The application around a state; `tracer` is told of every request that is over."""
    # The documentation pages would load their scripts from elsewhere; docs/api.md is ours.
    app = FastAPI(
        title="finlora",
        version=finlora.__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.server = state
    errors.install(app)
    app.add_middleware(RequestIds)
    state.metrics.http.begin(errors.CODES)
    app.add_middleware(AccessLog, state=state, tracer=tracer)
    app.include_router(health.router)
    app.include_router(playground_router())
    key, admin_key = [Depends(require_api_key)], [Depends(require_admin_key)]
    for router in (completions.router, chat.router, classify.router, models.router):
        app.include_router(router, prefix="/v1", dependencies=key)
    app.include_router(tokenization.router, dependencies=key)
    app.include_router(admin.router, prefix="/v1", dependencies=admin_key)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServerState = app.state.server
    state.start()
    yield
    await state.stop()
