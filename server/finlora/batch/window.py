"""How many requests a server is sent at a time: as many as it takes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Of a place, for each answer: a full server is tried with one more after eight answers.
GROWTH = 0.125


class Window:
    """Places for requests. One that is turned away leaves as many as the server holds then."""

    def __init__(self, most: int) -> None:
        self.num_open = 0
        self._most = most
        self._size = float(most)
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One place, when there is one."""
        while self.num_open >= int(self._size):
            self._changed.clear()
            await self._changed.wait()
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1
            self._changed.set()

    def turned_away(self) -> None:
        """The server had no room beside the requests that are open."""
        self._size = max(1.0, min(self._size, self.num_open))

    def answered(self) -> None:
        """The server has room for another."""
        self._size = min(self._most, self._size + GROWTH)
        self._changed.set()
