"""Administration of one server: what its registry and its memory hold. Knows no HTTP.

Changes of the registry run on a thread of their own, for they wait for locks and disks; changes in
memory run on the engine's.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from finlora.adapters.adapter import Adapter
from finlora.adapters.catalogue import MIN_DIGEST_PREFIX
from finlora.adapters.registry import AdapterRegistry
from finlora.api.adapter_rows import adapter_rows
from finlora.api.admin_protocol import AdapterRow, LoadBody
from finlora.api.state import ServerState
from finlora.errors import (
    AdapterConflictError,
    AdapterError,
    AdapterNotFoundError,
    RequestError,
)

if TYPE_CHECKING:
    from finlora.engine.llm_engine import LLMEngine

WHO = "admin api"
NOT_REGISTERED = (
    "lora_path: only registered adapters are loaded, by name or name@digest, never from a path; "
    "register the folder first: finlora adapters add FOLDER --name NAME"
)


class Administrator:
    """What an administrator can do; a reference is a name, an alias or `name@digest`."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._engine = state.engine
        # It imports torch, which has been imported once there is an engine.
        from finlora.engine import administration

        self._ask = administration

    async def rows(self) -> list[AdapterRow]:
        """Every adapter that is served, and every other version that is in memory."""
        return adapter_rows(self._state, await self._engine.ask(self._ask.report))

    async def load(self, reference: str) -> list[AdapterRow]:
        """Bring an adapter into RAM."""
        adapter = self._servable(reference)
        return await self._arrived(adapter, partial(self._ask.load, adapter=adapter))

    async def pin(self, reference: str) -> list[AdapterRow]:
        """Load an adapter and keep it. Raises AdapterConflictError."""
        adapter = self._servable(reference)
        return await self._arrived(adapter, partial(self._ask.pin, adapter=adapter))

    async def unpin(self, reference: str) -> list[AdapterRow]:
        """Let an adapter, all its versions or one, make room for others again."""
        digests = await self._find(reference)
        await self._engine.ask(partial(self._ask.unpin, digests=digests))
        return await self._rows_of(digests)

    async def evict(self, reference: str) -> list[AdapterRow]:
        """Take an adapter, all its versions or one, out of memory. Raises AdapterConflictError."""
        digests = await self._find(reference)
        await self._engine.ask(partial(self._ask.evict, digests=digests))
        return await self._rows_of(digests)

    async def load_as_vllm(self, body: LoadBody) -> list[AdapterRow]:
        """`load`, after a look at the path. Raises RequestError."""
        if body.lora_path is not None:
            self._check_path(body.lora_name, body.lora_path)
        return await self.load(body.lora_name)

    async def rollback(self, name: str, to: str | None) -> list[AdapterRow]:
        """Let a name mean its version before, or a stored one. Raises AdapterConflictError."""
        registry = self._writable()
        change = partial(registry.promote, name, to) if to else partial(registry.rollback, name)
        adapter = await asyncio.to_thread(change)
        return await self._rows_of({adapter.digest})

    async def alias(self, alias: str, name: str | None) -> None:
        """Let another name mean an adapter; None takes it away. Raises AdapterConflictError."""
        if alias == self._engine.spec.name:
            raise AdapterConflictError(f"{alias!r} is the name of the base")
        await asyncio.to_thread(self._writable().alias, alias, name)

    def _writable(self) -> AdapterRegistry:
        return AdapterRegistry(self._state.registry.folder, who=WHO)

    def _servable(self, reference: str) -> Adapter:
        adapter = self._state.resolve(reference)
        if adapter is None:
            raise AdapterNotFoundError(f"{reference!r} is the base, which is always loaded")
        return adapter

    def _check_path(self, name: str, path: str) -> None:
        try:
            meant = self._state.registry.resolve(path)
        except AdapterNotFoundError as error:
            raise RequestError(NOT_REGISTERED, param="lora_path") from error
        if meant.digest != self._servable(name).digest:
            raise RequestError(
                "lora_path: names another version than lora_name; an alias or a rollback changes "
                "what a name means",
                param="lora_path",
            )

    async def _arrived(
        self, adapter: Adapter, begin: "Callable[[LLMEngine], Future[None]]"
    ) -> list[AdapterRow]:
        await asyncio.wrap_future(await self._engine.ask(begin))
        return await self._rows_of({adapter.digest})

    async def _find(self, reference: str) -> set[str]:
        """Digests of the versions, registered still or only in memory."""
        name, at, prefix = reference.partition("@")
        name = self._state.registry.aliases().get(name, name)
        report = await self._engine.ask(self._ask.report)
        found = {r.digest for r in report.residents if r.name == name}
        if at:
            known = len(prefix) >= MIN_DIGEST_PREFIX
            found = {digest for digest in found if known and digest.startswith(prefix)}
        try:
            found.add(self._state.registry.resolve(reference).digest)
        except AdapterError:
            if not found:
                raise
        return found

    async def _rows_of(self, digests: set[str]) -> list[AdapterRow]:
        return [row for row in await self.rows() if row.digest in digests]
