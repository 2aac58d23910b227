"""Tells the log, beside the metrics, which adapters come and go."""

import logging

from finlora.adapters.residency import CacheObserver
from finlora.logs import log_event

logger = logging.getLogger(__name__)


class LoggedAdapters:
    """Passes on what the adapter cache does. Moves into slots happen often: `debug`."""

    def __init__(self, observer: CacheObserver) -> None:
        self._observer = observer

    def adapter_loaded(self, adapter: str, tier: str, seconds: float) -> None:
        """An adapter reached `ram` or `slot`."""
        self._observer.adapter_loaded(adapter, tier, seconds)
        level = logging.INFO if tier == "ram" else logging.DEBUG
        took = round(seconds, 6)
        log_event(logger, level, "adapter loaded", adapter=adapter, tier=tier, seconds=took)

    def adapter_evicted(self, adapter: str, tier: str) -> None:
        """An adapter left `ram` or `slot` to make room."""
        self._observer.adapter_evicted(adapter, tier)
        level = logging.INFO if tier == "ram" else logging.DEBUG
        log_event(logger, level, "adapter evicted", adapter=adapter, tier=tier)

    def adapter_load_failed(self, adapter: str) -> None:
        """An adapter could not be loaded; the lines of its requests have the reason."""
        self._observer.adapter_load_failed(adapter)
        log_event(logger, logging.WARNING, "adapter load failed", adapter=adapter)
