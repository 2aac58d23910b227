"""The loader thread: adapters from disk into RAM, one after the other, each version once at a time.

It hands its results over through a queue; whoever takes them needs no lock.
"""

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from finlora.adapters.adapter import Adapter
from finlora.errors import AdapterError, AdapterLoadError, FinLoRAError

logger = logging.getLogger(__name__)

Weights = TypeVar("Weights")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Weights]):
    """How one load ended."""

    adapter: Adapter
    result: Weights | AdapterError
    seconds: float


class AdapterLoader(Generic[Weights]):
    """Owns the thread, on which `load` and, after each load, `on_loaded` are called."""

    def __init__(self, load: Callable[[Adapter], Weights], on_loaded: Callable[[], None]) -> None:
        self._load = load
        self._on_loaded = on_loaded
        self._lock = threading.Lock()  # of the next two
        self._loading: dict[str, Adapter] = {}  # by digest
        self._closed = False
        self._arrivals: dict[str, Future[None]] = {}  # of loads that somebody waits for
        self._done: queue.SimpleQueue[Loaded[Weights]] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")

    @property
    def loading(self) -> list[Adapter]:
        """Begun and not yet taken."""
        with self._lock:
            return list(self._loading.values())

    def is_loading(self, digest: str) -> bool:
        """Whether a load of the version has begun and was not yet taken."""
        return digest in self._loading

    def begin(self, adapter: Adapter, *, max_loading: int = sys.maxsize) -> None:
        """Load the adapter, unless that has begun or so many loads have; safe from any thread."""
        with self._lock:
            if adapter.digest in self._loading or len(self._loading) >= max_loading:
                return
            if not self._closed:
                self._loading[adapter.digest] = adapter
                self._thread.submit(self._run, adapter)

    def arrival(self, adapter: Adapter) -> Future[None]:
        """`begin`, and what is done, or fails, when the load is taken."""
        self.begin(adapter)
        return self._arrivals.setdefault(adapter.digest, _running_future())

    def take(self) -> Iterator[Loaded[Weights]]:
        """The loads that ended since the last call."""
        while not self._done.empty():
            loaded = self._done.get()
            with self._lock:
                del self._loading[loaded.adapter.digest]
            yield loaded
            self._tell(loaded)

    def abandon(self, error: FinLoRAError) -> None:
        """Fail what was to be done when loads are taken: nobody takes them any more."""
        for arrival in self._arrivals.values():
            arrival.set_exception(error)
        self._arrivals.clear()

    def close(self) -> None:
        """Stop the thread; loads that did not begin never will."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _tell(self, loaded: Loaded[Weights]) -> None:
        arrival = self._arrivals.pop(loaded.adapter.digest, None)
        if arrival is None:
            return
        if isinstance(loaded.result, AdapterError):
            arrival.set_exception(loaded.result)
        else:
            arrival.set_result(None)

    def _run(self, adapter: Adapter) -> None:
        started = time.perf_counter()
        result: Weights | AdapterError
        try:
            result = self._load(adapter)
        except AdapterError as error:
            result = error
        except Exception as error:  # one adapter's trouble stays its own
            logger.exception("loading adapter %s failed", adapter.name)
            result = AdapterLoadError(f"adapter {adapter.name}: {type(error).__name__}: {error}")
        self._done.put(Loaded(adapter, result, time.perf_counter() - started))
        self._on_loaded()


def _running_future() -> Future[None]:
    """One that those who wait for it cannot cancel for the others."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future
