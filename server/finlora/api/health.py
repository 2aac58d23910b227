"""What probes and scrapers ask; open to everybody, so it shows no prompt and no path.

Some load balancers ask for the head alone.
"""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

import finlora
from finlora.api.state import server_state

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the process is worth keeping, also when it still loads."""
    healthy = server_state(request).healthy
    return _answer(healthy, {"status": "ok" if healthy else "failed"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 once requests are served: the base is warm and computes what it should."""
    state = server_state(request)
    status = "ready" if state.ready else "not ready"
    return _answer(state.ready, {"status": status, "phase": state.phase})


@router.head("/version", include_in_schema=False)
@router.get("/version")
async def version() -> Response:
    """The version of the server."""
    return _answer(True, {"version": finlora.__version__})


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All series, in the format that the scraper asks for."""
    accept = request.headers.get("accept", "")
    # With many adapters this takes tens of milliseconds, in which streams should go on.
    body, content_type = await asyncio.to_thread(server_state(request).metrics.exposition, accept)
    return Response(body, headers={"Content-Type": content_type})


def _answer(good: bool, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), 200 if good else 503, media_type="application/json")
