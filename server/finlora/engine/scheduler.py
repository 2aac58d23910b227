"""Who runs in the next step: token budget, KV pages, adapter slots, and fairness among them.

Order: running sequences that decode, running prefills, then the waiting queue, first come first
served. A waiting request may be overtaken only while its adapter is loading or no slot is free for
it; after `MAX_OVERTAKEN` times no request that would keep a slot busy is let past it, so the slots
drain and it gets the first one.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from finlora.adapters.adapter import Adapter
from finlora.engine.kv_cache import KVCache
from finlora.engine.request import Request, RequestStatus
from finlora.errors import AdapterError

MAX_OVERTAKEN = 64
NO_SLOT = -1


class AdapterSlots(Protocol):
    """What the scheduler asks of the adapter cache."""

    max_loras: int

    def want(self, adapters: list[Adapter]) -> None: ...
    def error(self, adapter: Adapter) -> AdapterError | None: ...
    def is_loaded(self, adapter: Adapter) -> bool: ...
    def acquire(self, adapter: Adapter) -> int | None: ...
    def release(self, adapter: Adapter) -> None: ...
    def hold(self, adapter: Adapter) -> None: ...
    def unhold(self, adapter: Adapter) -> None: ...


@dataclass(slots=True)
class Running:
    """A request with a row of the page table and, if it has an adapter, a pinned slot."""

    request: Request
    row: int
    slot: int


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """New tokens [start, start + num_tokens) of one running request."""

    running: Running
    start: int
    num_tokens: int
    samples: bool  # whether the step gives the request its next token

    @property
    def request(self) -> Request:
        """The request."""
        return self.running.request


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: sequences with one new token first, each part sorted by slot."""

    sequences: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of the packed batch."""
        return sum(sequence.num_tokens for sequence in self.sequences)


class Scheduler:
    """Owns the queues; takes pages from the KV cache and slots from the adapter cache."""

    def __init__(
        self,
        kv_cache: KVCache,
        adapters: AdapterSlots,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_logits_rows: int,
    ) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Running] = []  # in order of admission
        self.num_preemptions = 0
        self._kv_cache = kv_cache
        self._adapters = adapters
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_logits_rows = max_logits_rows
        # Cutting a prompt changes the order in which attention sums, by the load of the moment.
        # A short one is not cut but waits for the next step, so its answer is always the same.
        self._max_uncut_tokens = max_num_batched_tokens // 4
        self._overtaken: dict[Request, int] = {}

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def schedule(self) -> Batch:
        """Choose the next step's sequences and give each its pages; may preempt, may be empty."""
        self._want_adapters()
        step = _Step(self._max_num_batched_tokens, self._max_logits_rows)
        preempted = self._continue_running(step)
        if not preempted:  # memory is short: nobody new
            self._admit_waiting(step)
        ordered = sorted(step.chosen, key=lambda s: (s.num_tokens > 1, s.running.slot))
        return Batch(tuple(ordered))

    def advance(self, batch: Batch) -> None:
        """Record that the batch's tokens are in the KV cache."""
        for sequence in batch.sequences:
            sequence.request.num_computed_tokens += sequence.num_tokens

    def finish(self, request: Request, status: RequestStatus) -> None:
        """End a request wherever it stands and release all it owns."""
        running = next((r for r in self.running if r.request is request), None)
        if running is not None:
            self._stop_running(running)
        elif request in self.waiting:
            self.waiting.remove(request)
        if request.started and request.adapter is not None:
            self._adapters.unhold(request.adapter)
        self._overtaken.pop(request, None)
        request.status = status

    def take_unloadable(self) -> list[tuple[Request, AdapterError]]:
        """End the waiting requests whose adapter could not be loaded; with the reasons."""
        errors: dict[str, AdapterError | None] = {}
        failed = []
        for request in list(self.waiting):
            if request.adapter is None:
                continue
            if request.adapter.digest not in errors:
                errors[request.adapter.digest] = self._adapters.error(request.adapter)
            error = errors[request.adapter.digest]
            if error is not None:
                self.finish(request, RequestStatus.FINISHED_ERROR)
                failed.append((request, error))
        return failed

    def check_idle(self) -> None:
        """Raise RuntimeError when a request is left anywhere."""
        if self.waiting or self.running or self._overtaken:
            raise RuntimeError("scheduler: requests are left")

    def _want_adapters(self) -> None:
        limit = 2 * self._adapters.max_loras
        wanted: dict[str, Adapter] = {}
        for request in self.waiting:
            if request.adapter is not None:
                wanted.setdefault(request.adapter.digest, request.adapter)
            if len(wanted) == limit:
                break
        self._adapters.want(list(wanted.values()))

    def _continue_running(self, step: "_Step") -> bool:
        preempted = False
        decoding = [r for r in self.running if _num_missing(r.request) == 1]
        prefilling = [r for r in self.running if _num_missing(r.request) != 1]
        for running in [*decoding, *prefilling]:
            if running.request.status is not RequestStatus.RUNNING:
                continue  # preempted for an older one
            num_tokens = step.fit(running.request)
            if num_tokens == 0:
                continue
            while self._kv_cache.num_free_pages < num_tokens:
                preempted = True
                victim = self._youngest(step)
                self._preempt(victim)
                if victim is running:
                    break
            else:
                self._choose(step, running, num_tokens)
        return preempted

    def _youngest(self, step: "_Step") -> Running:
        chosen = {sequence.running.request for sequence in step.chosen}
        return next(r for r in reversed(self.running) if r.request not in chosen)

    def _preempt(self, running: Running) -> None:
        """Give pages and slot back; the tokens are recomputed when there is room again."""
        request = running.request
        self._stop_running(running)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.status = RequestStatus.PREEMPTED
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _stop_running(self, running: Running) -> None:
        self.running.remove(running)
        self._kv_cache.close(running.row)
        if running.request.adapter is not None:
            self._adapters.release(running.request.adapter)

    def _admit_waiting(self, step: "_Step") -> None:
        slots_drain = False  # an overtaken request waits for a slot to become free
        blocked = []
        for request in list(self.waiting):
            if not step.has_room or len(self.running) == self._max_num_seqs:
                break
            num_tokens = step.fit(request)
            if num_tokens < _num_missing(request) and not self._may_cut(request):
                break
            if self.running and not self._fits_memory(request):
                break
            slot = NO_SLOT
            if request.adapter is not None:
                found = None if slots_drain else self._acquire(request)
                if found is None:
                    blocked.append(request)
                    slots_drain |= self._overtaken.get(request, 0) >= MAX_OVERTAKEN
                    continue
                slot = found
            self._overtaken.pop(request, None)
            self._count_overtaken(blocked)
            self._start(request, slot)
            self._choose(step, self.running[-1], num_tokens)

    def _may_cut(self, request: Request) -> bool:
        long = _num_missing(request) > self._max_uncut_tokens
        return long or request.needs_prompt_logits  # whose own budget may be smaller than that

    def _fits_memory(self, request: Request) -> bool:
        # The whole of it, and the next token of everybody else: else it would be preempted at once.
        needed = _num_missing(request) + len(self.running)
        return needed <= self._kv_cache.num_free_pages

    def _acquire(self, request: Request) -> int | None:
        assert request.adapter is not None
        if not self._adapters.is_loaded(request.adapter):
            if request.status is RequestStatus.WAITING:
                request.status = RequestStatus.WAITING_FOR_ADAPTER
            return None
        return self._adapters.acquire(request.adapter)

    def _count_overtaken(self, blocked: Iterable[Request]) -> None:
        for request in blocked:
            if request.adapter is not None and self._adapters.is_loaded(request.adapter):
                self._overtaken[request] = self._overtaken.get(request, 0) + 1

    def _start(self, request: Request, slot: int) -> None:
        self.waiting.remove(request)
        if not request.started and request.adapter is not None:
            self._adapters.hold(request.adapter)
        request.start()
        self.running.append(Running(request, self._kv_cache.open(), slot))

    def _choose(self, step: "_Step", running: Running, num_tokens: int) -> None:
        self._kv_cache.extend(running.row, num_tokens)
        step.take(running, num_tokens)


class _Step:
    """The room left in the step that is being put together."""

    def __init__(self, num_tokens: int, num_logits_rows: int) -> None:
        self.chosen: list[ScheduledSequence] = []
        self._num_tokens = num_tokens
        self._num_logits_rows = num_logits_rows

    @property
    def has_room(self) -> bool:
        """Whether another token fits."""
        return self._num_tokens > 0 and self._num_logits_rows > 0

    def fit(self, request: Request) -> int:
        """How many of the request's missing tokens fit."""
        fitting = min(_num_missing(request), self._num_tokens)
        if self._num_logits_rows == 0:
            return 0
        return min(fitting, self._num_logits_rows) if request.needs_prompt_logits else fitting

    def take(self, running: Running, num_tokens: int) -> None:
        """Use up the room."""
        start = running.request.num_computed_tokens
        samples = num_tokens == _num_missing(running.request)
        self.chosen.append(ScheduledSequence(running, start, num_tokens, samples))
        self._num_tokens -= num_tokens
        self._num_logits_rows -= num_tokens if running.request.needs_prompt_logits else 1


def _num_missing(request: Request) -> int:
    return request.num_tokens - request.num_computed_tokens
