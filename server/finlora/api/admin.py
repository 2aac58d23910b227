"""Administration over HTTP: adapters in memory, aliases, rollback. vLLM's names are known too."""

from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request, Response

from finlora.adapters.adapter import NAME_PATTERN
from finlora.api.admin_protocol import AdapterRow, AliasBody, LoadBody, RollbackBody, UnloadBody
from finlora.api.administrator import Administrator
from finlora.api.connection import read_body
from finlora.api.state import server_state

router = APIRouter()

MAX_BODY_BYTES = 64 * 1024

Reference = Annotated[str, Path(max_length=256)]
Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$")]


@router.get("/admin/adapters")
async def list_adapters(request: Request) -> Response:
    """Every adapter that is served, and every other version in memory."""
    return _listed(await _administrator(request).rows())


@router.post("/admin/adapters/{adapter}/load")
async def load(request: Request, adapter: Reference) -> Response:
    """Read an adapter into RAM before a request needs it; answers when it is there."""
    return _listed(await _administrator(request).load(adapter))


@router.post("/admin/adapters/{adapter}/evict")
async def evict(request: Request, adapter: Reference) -> Response:
    """Take an adapter out of memory; 409 while requests use it."""
    return _listed(await _administrator(request).evict(adapter))


@router.post("/admin/adapters/{adapter}/pin")
async def pin(request: Request, adapter: Reference) -> Response:
    """Load an adapter and never let it make room for others."""
    return _listed(await _administrator(request).pin(adapter))


@router.post("/admin/adapters/{adapter}/unpin")
async def unpin(request: Request, adapter: Reference) -> Response:
    """Let an adapter make room for others again."""
    return _listed(await _administrator(request).unpin(adapter))


@router.post("/admin/adapters/{name}/rollback")
async def rollback(request: Request, name: Name) -> Response:
    """Let a name mean its version before, or the stored one that `to` names."""
    body = RollbackBody.from_json(await _body(request))
    return _listed(await _administrator(request).rollback(name, body.to))


@router.put("/admin/aliases/{alias}")
async def set_alias(request: Request, alias: Name) -> Response:
    """Let another name mean an adapter."""
    body = AliasBody.from_json(await _body(request))
    await _administrator(request).alias(alias, body.name)
    return _json({"alias": alias, "name": body.name})


@router.delete("/admin/aliases/{alias}")
async def delete_alias(request: Request, alias: Name) -> Response:
    """Take an alias away."""
    await _administrator(request).alias(alias, None)
    return _json({"alias": alias, "name": None})


@router.post("/load_lora_adapter")
async def load_as_vllm(request: Request) -> Response:
    """Load, as vLLM's clients ask for it."""
    body = LoadBody.from_json(await _body(request))
    return _listed(await _administrator(request).load_as_vllm(body))


@router.post("/unload_lora_adapter")
async def unload_as_vllm(request: Request) -> Response:
    """Evict, as vLLM's clients ask for it; the name stays registered."""
    body = UnloadBody.from_json(await _body(request))
    return _listed(await _administrator(request).evict(body.lora_name))


def _administrator(request: Request) -> Administrator:
    return Administrator(server_state(request))


async def _body(request: Request) -> bytes:
    return await read_body(request, MAX_BODY_BYTES)


def _listed(rows: list[AdapterRow]) -> Response:
    return _json({"object": "list", "data": [asdict(row) for row in rows]})


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
