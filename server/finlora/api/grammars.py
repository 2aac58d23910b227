"""Grammars that clients send: compiled beside the event loop, each once, the latest kept."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from finlora.engine.constraints import Grammar, GrammarKind
from finlora.errors import EngineOverloadedError, EngineStoppedError

MAX_GRAMMARS = 64
MAX_BYTES = 2**20  # of their sources
MAX_COMPILING = 16

Key = tuple[GrammarKind, str]


class GrammarCache:
    """The latest grammars by their text. For one event loop."""

    def __init__(
        self, compile: Callable[[GrammarKind, str], Grammar], close: Callable[[], None]
    ) -> None:
        self._compile = compile
        self._close = close
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._grammars: OrderedDict[Key, asyncio.Future[Grammar]] = OrderedDict()
        self._num_compiling = 0

    @property
    def num_grammars(self) -> int:
        """Grammars kept or being compiled."""
        return len(self._grammars)

    async def get(self, kind: GrammarKind, source: str) -> Grammar:
        """The compiled grammar.

        Raises InvalidSamplingParamsError, EngineOverloadedError, EngineStoppedError.
        """
        key = (kind, source)
        if key not in self._grammars:
            self._begin(key)
        self._grammars.move_to_end(key)
        compiling = self._grammars[key]
        try:
            # Whoever goes away leaves the work to the others who wait for it.
            return await asyncio.shield(compiling)
        except asyncio.CancelledError:
            if not compiling.cancelled():
                raise
            raise EngineStoppedError("the server stopped before the grammar was compiled") from None

    def close(self) -> None:
        """Compile no more: one at most is under way, whoever waits is told."""
        for compiling in list(self._grammars.values()):
            compiling.cancel()
        self._pool.submit(self._close)
        self._pool.shutdown(wait=False)

    def _begin(self, key: Key) -> None:
        if self._num_compiling >= MAX_COMPILING:
            raise EngineOverloadedError(f"{self._num_compiling} grammars wait to be compiled")
        self._num_compiling += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._compile, *key)
        self._grammars[key] = future
        future.add_done_callback(lambda done: self._end(key, done))

    def _end(self, key: Key, done: "asyncio.Future[Grammar]") -> None:
        self._num_compiling -= 1
        if done.cancelled() or done.exception() is not None:
            self._grammars.pop(key, None)
        self._evict()

    def _evict(self) -> None:
        num_bytes = sum(len(source.encode()) for _, source in self._grammars)
        while len(self._grammars) > MAX_GRAMMARS or num_bytes > MAX_BYTES:
            (_, source), _ = self._grammars.popitem(last=False)
            num_bytes -= len(source.encode())
