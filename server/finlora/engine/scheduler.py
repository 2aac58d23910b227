"""Who runs in the next step: token budget, KV pages, adapter slots, and fairness among them.

Order: running sequences that decode, running prefills, then the waiting queue, first come first
served. A waiting request may be overtaken only while its adapter is loading or no slot is free for
it; after `MAX_OVERTAKEN` times no request that would keep a slot busy is let past it, so the slots
drain and it gets the first one.
"""

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from finlora.adapters.adapter import Adapter
from finlora.engine.batch import (
    NO_SLOT,
    Batch,
    BatchBuilder,
    Branch,
    Running,
    num_missing_tokens,
)
from finlora.engine.kv_cache import NUM_BRANCH_ROWS
from finlora.engine.memory import KVMemory
from finlora.engine.prefix_cache import Owner
from finlora.engine.request import Request, RequestStatus
from finlora.errors import AdapterError

MAX_OVERTAKEN = 64


class AdapterResidency(Protocol):
    """What the scheduler asks of the adapter cache."""

    max_loras: int

    def want(self, adapters: list[Adapter]) -> None: ...
    def error(self, adapter: Adapter) -> AdapterError | None: ...
    def is_loaded(self, adapter: Adapter) -> bool: ...
    def acquire(self, adapter: Adapter) -> int | None: ...
    def release(self, adapter: Adapter) -> None: ...
    def hold(self, adapter: Adapter) -> None: ...
    def unhold(self, adapter: Adapter) -> None: ...


class Scheduler:
    """Owns the queues; takes pages from the KV cache and slots from the adapter cache."""

    def __init__(
        self,
        memory: KVMemory,
        adapters: AdapterResidency,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_logits_rows: int,
    ) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Running] = []  # in order of admission
        self.num_preemptions = 0
        self._memory = memory
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
        self._memory.kv_cache.close_branches()
        step = self._new_step()
        preempted = self._continue_running(step)
        if not preempted:  # memory is short: nobody new
            self._admit_waiting(step)
        return step.build()

    def advance(self, batch: Batch) -> None:
        """Record that the batch's tokens are in the KV cache."""
        for sequence in batch.sequences:
            request = sequence.request
            request.num_computed_tokens += sequence.num_tokens
            if sequence.start < len(request.prompt_token_ids) <= request.num_computed_tokens:
                self._memory.publish(sequence.running.row, request.prompt_token_ids)

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

    def unloadable(self) -> list[tuple[Request, AdapterError]]:
        """The waiting requests whose adapter could not be loaded, with the reasons, told once."""
        errors: dict[str, AdapterError | None] = {}
        failed = []
        for request in self.waiting:
            if request.adapter is None:
                continue
            if request.adapter.digest not in errors:
                errors[request.adapter.digest] = self._adapters.error(request.adapter)
            error = errors[request.adapter.digest]
            if error is not None:
                failed.append((request, error))
        return failed

    def check_idle(self) -> None:
        """Raise RuntimeError when a request is left anywhere."""
        if self.waiting or self.running or self._overtaken:
            raise RuntimeError("scheduler: requests are left")

    def _new_step(self) -> BatchBuilder:
        return BatchBuilder(self._max_num_batched_tokens, self._max_logits_rows, NUM_BRANCH_ROWS)

    def _want_adapters(self) -> None:
        limit = 2 * self._adapters.max_loras
        wanted: dict[str, Adapter] = {}
        for request in self.waiting:
            if request.adapter is not None:
                wanted.setdefault(request.adapter.digest, request.adapter)
            if len(wanted) == limit:
                break
        self._adapters.want(list(wanted.values()))

    def _continue_running(self, step: BatchBuilder) -> bool:
        preempted = False
        decoding = [r for r in self.running if num_missing_tokens(r.request) == 1]
        prefilling = [r for r in self.running if num_missing_tokens(r.request) != 1]
        for running in [*decoding, *prefilling]:
            if running.request.status is not RequestStatus.RUNNING:
                continue  # preempted for an older one
            num_tokens = step.fit(running.request)
            if num_tokens == 0:
                continue
            while self._memory.num_available_pages < num_tokens:
                preempted = True
                victim = self._youngest(step)
                self._preempt(victim)
                if victim is running:
                    break
            else:
                self._choose(step, running, num_tokens)
        return preempted

    def _youngest(self, step: BatchBuilder) -> Running:
        chosen = {sequence.running.request for sequence in step.chosen}
        return next(r for r in reversed(self.running) if r.request not in chosen)

    def _preempt(self, running: Running) -> None:
        """Give pages and slot back; the tokens are recomputed when there is room again."""
        request = running.request
        # Others may come to need the pages; until they do, nothing has to be computed again.
        self._memory.publish(running.row, request.tokens(0, request.num_computed_tokens))
        self._stop_running(running)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.status = RequestStatus.PREEMPTED
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _stop_running(self, running: Running) -> None:
        self.running.remove(running)
        self._memory.close(running.row)
        self._release(running.request)

    def _admit_waiting(self, step: BatchBuilder) -> None:
        slots_drain = False  # an overtaken request waits for a slot to become free
        blocked: list[Request] = []
        for request in list(self.waiting):
            if not step.has_room or len(self.running) == self._max_num_seqs:
                break
            slot = self._acquire(request, slots_drain)
            if slot is None:
                blocked.append(request)
                slots_drain |= self._overtaken.get(request, 0) >= MAX_OVERTAKEN
                continue
            if not self._fits(request, step):
                self._release(request)
                break
            self._overtaken.pop(request, None)
            self._count_overtaken(blocked)
            self._start(request, slot)
            self._choose(step, self.running[-1], step.fit(request))

    def _fits(self, request: Request, step: BatchBuilder) -> bool:
        # The whole of it, and the next token of everybody else: else it would be preempted at once.
        num_pages = num_missing_tokens(request) + len(self.running)
        if self.running and num_pages > self._memory.num_available_pages:
            return False
        tokens = request.tokens(0, request.num_tokens)
        num_missing = request.num_tokens - self._memory.num_cached(_owner(request), tokens)
        may_cut = num_missing > self._max_uncut_tokens or request.needs_prompt_logits
        fits = may_cut or step.holds(request, num_missing)
        return fits or not self._new_step().holds(request, num_missing)  # a larger one never comes

    def _acquire(self, request: Request, slots_drain: bool) -> int | None:
        """The slot to run in, pinned; None when there is none yet."""
        if request.adapter is None:
            return NO_SLOT
        if not self._adapters.is_loaded(request.adapter):
            if request.status is RequestStatus.WAITING:
                request.status = RequestStatus.WAITING_FOR_ADAPTER
            return None
        return None if slots_drain else self._adapters.acquire(request.adapter)

    def _release(self, request: Request) -> None:
        if request.adapter is not None:
            self._adapters.release(request.adapter)

    def _count_overtaken(self, blocked: Iterable[Request]) -> None:
        for request in blocked:
            if request.adapter is not None and self._adapters.is_loaded(request.adapter):
                self._overtaken[request] = self._overtaken.get(request, 0) + 1

    def _start(self, request: Request, slot: int) -> None:
        self.waiting.remove(request)
        if not request.started and request.adapter is not None:
            self._adapters.hold(request.adapter)
        tokens = request.tokens(0, request.num_tokens)
        row, request.num_computed_tokens = self._memory.open(_owner(request), tokens)
        request.start()
        self.running.append(Running(request, row, slot))

    def _choose(self, step: BatchBuilder, running: Running, num_tokens: int) -> None:
        request, row = running.request, running.row
        self._memory.extend(row, num_tokens)
        columns = request.branch_columns(request.num_computed_tokens, num_tokens)
        step.take(running, num_tokens, [self._branch(running, *item) for item in columns.items()])

    def _branch(self, running: Running, node: int, columns: list[int]) -> Branch:
        num_text_tokens = running.request.num_text_tokens
        row = self._memory.kv_cache.branch(running.row, num_text_tokens, columns)
        return Branch(node, row, num_text_tokens + len(columns) - 1)


def _owner(request: Request) -> Owner | None:
    """Whose cached text the request may begin with; log-probabilities need every token computed."""
    return None if request.needs_prompt_logits else (request.cache_salt, request.digest)
