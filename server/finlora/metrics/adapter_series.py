"""Counters with an `adapter` label: bounded in number, and gone when their adapter is removed."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from finlora.metrics.events import FinishedRequest

# Registered names start with a letter or a digit, so these two can never be an adapter's.
BASE_LABEL = "_base"
OTHER_LABEL = "_other"

REASONS = ("stop", "length", "abort", "error", "refused")
TIERS = ("ram", "slot")
# With 100 adapters: at most 1,700 series of answers.
MAX_LABELS = 16


class RegisteredAdapters(Protocol):
    """What is asked of the adapter registry."""

    def generation(self) -> int:
        """A number that changes whenever an adapter is added, replaced or removed."""

    def is_registered(self, name: str) -> bool:
        """Whether the name is served."""

    def names(self) -> Collection[str]:
        """All that are served."""


class AdapterSeries:
    """Counts by adapter. Safe to use from several threads."""

    def __init__(
        self,
        registry: CollectorRegistry,
        max_adapters: int,
        registered: RegisteredAdapters | None,
    ) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"finlora_{name}", text, ("adapter", *labels), registry=registry)
            self._counters.append(made)
            return made

        self._counters: list[Counter] = []
        self._max_adapters = max_adapters
        self._registered = registered
        self._generation: int | None = None
        self._names: set[str] = set()
        self._scraped: set[str] = set()  # of them, those whose series some scrape has shown
        # A series must not come back between the moment its name is looked up and counted.
        self._lock = threading.Lock()
        self._requests = counter("requests", "Sequences that ended", "reason")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens served")
        self._cached_tokens = counter("prompt_tokens_cached", "Of these, from the prefix cache")
        self._output_tokens = counter("output_tokens", "Tokens generated")
        self._prefix_hits = counter("prefix_cache_hits", "Sequences that found a cached beginning")
        self._labels = counter(
            "predicted_labels", f"Answers that are a label, or {OTHER_LABEL}", "label"
        )
        self._seconds = counter("adapter_seconds", "Step time, shared out by rows of the batch")
        self._non_finite = counter("non_finite_rows", "Rows whose logits were not finite")
        self._loads = counter("adapter_loads", "Times brought into a tier", "tier")
        self._evictions = counter("adapter_evictions", "Times put out of a tier", "tier")
        self._failures = counter("adapter_load_failures", "Loads that failed")
        for name in (BASE_LABEL, OTHER_LABEL):
            self._begin(name)

    def finished(self, event: FinishedRequest) -> None:
        """A sequence ended."""
        with self._lock:
            name = self._label(event.adapter)
            self._requests.labels(name, event.reason).inc()
            self._prompt_tokens.labels(name).inc(event.num_served_prompt_tokens)
            self._output_tokens.labels(name).inc(event.num_output_tokens)
            if event.num_cached_tokens:
                self._cached_tokens.labels(name).inc(event.num_cached_tokens)
                self._prefix_hits.labels(name).inc()
            if event.labels and event.reason in ("stop", "length"):
                self._labels.labels(name, _answer(name, event)).inc()

    def spent(self, seconds: float, rows: Mapping[str | None, int]) -> None:
        """A step took `seconds`; each adapter had so many of its rows."""
        total = sum(rows.values())
        with self._lock:
            for adapter, count in rows.items():
                self._seconds.labels(self._label(adapter)).inc(seconds * count / total)

    def non_finite(self, adapter: str | None) -> None:
        """The logits of one row were not finite."""
        with self._lock:
            self._non_finite.labels(self._label_of_fault(adapter)).inc()

    def loaded(self, adapter: str, tier: str) -> None:
        """An adapter came into a tier."""
        with self._lock:
            self._loads.labels(self._label(adapter), tier).inc()

    def evicted(self, adapter: str, tier: str) -> None:
        """An adapter left a tier."""
        with self._lock:
            self._evictions.labels(self._label(adapter), tier).inc()

    def load_failed(self, adapter: str) -> None:
        """An adapter could not be loaded."""
        with self._lock:
            self._failures.labels(self._label_of_fault(adapter)).inc()

    def label(self, adapter: str) -> str:
        """The label under which a name is counted."""
        with self._lock:
            return self._label(adapter)

    @contextmanager
    def scrape(self) -> Iterator[None]:
        """While the series are read: those of registered names are there, those of others not."""
        self._follow_registry()
        with self._lock:
            shown = set(self._names)
        yield
        with self._lock:
            self._scraped = shown & self._names

    def _follow_registry(self) -> None:
        if self._registered is None:
            return
        generation = self._registered.generation()
        if generation == self._generation:
            return
        names = set(self._registered.names())  # before the lock: it reads a file for each
        with self._lock:
            self._generation = generation
            # Asked again: a name may have come, and been used, since they were listed.
            self._forget({n for n in self._names - names if not self._is_registered(n)})
            # When they are too many, those that are used first get the labels.
            if len(self._names | names) <= self._max_adapters:
                for name in sorted(names - self._names):
                    self._add(name)

    def _forget(self, removed: set[str]) -> None:
        self._names -= removed
        self._scraped -= removed
        for name in removed:
            for counter in self._counters:
                counter.remove_by_labels({"adapter": name})

    def _is_registered(self, name: str) -> bool:
        return self._registered is None or self._registered.is_registered(name)

    def _label(self, adapter: str | None) -> str:
        if adapter is None:
            return BASE_LABEL
        if adapter in self._names:
            return adapter
        if len(self._names) >= self._max_adapters or not self._is_registered(adapter):
            return OTHER_LABEL
        self._add(adapter)
        return adapter

    def _label_of_fault(self, adapter: str | None) -> str:
        """A label that has been scraped: in a series that is first seen at 1 nothing rises."""
        name = self._label(adapter)
        return name if name in self._scraped or name == BASE_LABEL else OTHER_LABEL

    def _add(self, name: str) -> None:
        self._names.add(name)
        self._begin(name)

    def _begin(self, name: str) -> None:
        """Start at 0: a rate sees only growth from a value that was scraped before."""
        for reason in REASONS:
            self._requests.labels(name, reason)
        for counter in (self._prompt_tokens, self._cached_tokens, self._output_tokens):
            counter.labels(name)
        for counter in (self._prefix_hits, self._seconds, self._non_finite):
            counter.labels(name)
        if name == BASE_LABEL:
            return
        self._failures.labels(name)
        for tier in TIERS:
            self._loads.labels(name, tier)
            self._evictions.labels(name, tier)


def _answer(adapter: str, event: FinishedRequest) -> str:
    """The label that the text is. What is not counted by name has no labels of its own."""
    known: Sequence[str] = () if adapter == OTHER_LABEL else event.labels[:MAX_LABELS]
    text = event.text.strip()
    return text if text in known else OTHER_LABEL
