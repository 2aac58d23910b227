"""GET /v1/models: the base and the adapters that can be asked for as `model`."""

from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from finlora.adapters.adapter import Adapter
from finlora.api.state import ServerState, server_state

router = APIRouter()


@router.get("/models")
async def list_models(request: Request) -> Response:
    """The base first, then its adapters by name; adapters of other bases are left out."""
    state = server_state(request)
    adapters = sorted(state.adapters(), key=lambda adapter: adapter.name)
    cards = [_base_card(state), *(_adapter_card(state, adapter) for adapter in adapters)]
    return _json({"object": "list", "data": cards})


@router.get("/models/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    """One of them, also by alias or as `name@digest`."""
    state = server_state(request)
    adapter = state.resolve(model)
    if adapter is None:
        return _json(_base_card(state))
    return _json({**_adapter_card(state, adapter), "id": model})


def _base_card(state: ServerState) -> dict[str, Any]:
    name = state.engine.spec.name
    return {
        "id": name,
        "object": "model",
        "created": state.started,
        "owned_by": "finlora",
        "root": name,
        "parent": None,
        "max_model_len": state.engine.max_model_len,
    }


def _adapter_card(state: ServerState, adapter: Adapter) -> dict[str, Any]:
    base = _base_card(state)
    return {
        **base,
        "id": adapter.name,
        "created": _created(adapter),
        "parent": base["id"],
        "digest": adapter.digest,
        "task": adapter.manifest.task,
        "labels": adapter.manifest.labels,
        "prompt_template": adapter.manifest.prompt_template,
    }


def _created(adapter: Adapter) -> int:
    """When the adapter was made; if nobody noted that, when it was registered."""
    if adapter.manifest.created is not None:
        try:
            made = datetime.fromisoformat(adapter.manifest.created)
        except ValueError:
            pass
        else:
            return int((made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp())
    return int(adapter.folder.stat().st_mtime)


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
