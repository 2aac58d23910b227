"""Steps an engine in the calling thread, for any number of streams of requests at once.

Knows token ids, no texts. Streams of several threads may run at the same time: their requests share
batches, and whoever waits for an answer does the stepping.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from finlora.adapters.adapter import Adapter
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import EngineStoppedError, FinLoRAError

# Several batches: a request that ends is replaced at once, and a long one holds up few others.
MAX_QUEUED = 256


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and what to make of it."""

    prompt_token_ids: list[int]
    params: SamplingParams
    adapter: Adapter | None = None


@dataclass(slots=True, eq=False)
class _Ticket:
    """A job's place in its stream."""

    result: RequestOutput | FinLoRAError | None = None
    request_id: str = ""


class Runner:
    """Owns the stepping of one engine; nothing else may drive it meanwhile."""

    def __init__(self, engine: LLMEngine, *, max_queued: int = MAX_QUEUED) -> None:
        self.engine = engine
        self._max_queued = max_queued
        self._ids = count()
        self._lock = threading.Lock()
        self._loaded = threading.Event()
        self._unfinished: dict[str, _Ticket] = {}
        self._closed = False
        engine.adapters.on_loaded = self._loaded.set

    def stream(self, jobs: Iterable[Job | FinLoRAError]) -> Iterator[RequestOutput | FinLoRAError]:
        """The last output of each job, or the error that ended it, in the order of the jobs.

        Reads at most `max_queued` jobs ahead of what it gives. An error among the jobs keeps its
        place. Whatever ends the stream, none of its requests is left in the engine.
        """
        pending: deque[_Ticket] = deque()
        try:
            for job in jobs:
                pending.append(self._begin(job))
                if len(pending) >= self._max_queued:
                    yield self._result(pending[0])
                    pending.popleft()
            while pending:
                yield self._result(pending[0])
                pending.popleft()
        finally:
            self._abort(pending)

    def close(self) -> None:
        """End what still runs and stop the engine's loader; streams raise EngineStoppedError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            error = EngineStoppedError("the engine was closed while this request ran")
            self._settle(self.engine.fail_all(error))
            self.engine.close()

    def _begin(self, job: Job | FinLoRAError) -> _Ticket:
        if isinstance(job, FinLoRAError):
            return _Ticket(job)
        ticket = _Ticket(request_id=str(next(self._ids)))
        try:
            request = self.engine.make_request(
                ticket.request_id, job.prompt_token_ids, job.params, adapter=job.adapter
            )
        except FinLoRAError as error:
            ticket.result = error
            return ticket
        with self._lock:
            if self._closed:
                raise EngineStoppedError("the engine is closed")
            self._unfinished[ticket.request_id] = ticket
            self.engine.add_request(request)
        return ticket

    def _result(self, ticket: _Ticket) -> RequestOutput | FinLoRAError:
        while ticket.result is None:
            with self._lock:
                if ticket.result is None:  # another thread may have stepped meanwhile
                    self._step()
        return ticket.result

    def _step(self) -> None:
        self._loaded.clear()
        outputs = self.engine.step()
        self._settle(outputs)
        if self.engine.last_step_was_idle and not outputs:
            self._loaded.wait()

    def _settle(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.finish_reason is not None:
                self._unfinished.pop(output.request_id).result = output.error or output

    def _abort(self, tickets: Iterable[_Ticket]) -> None:
        with self._lock:
            for ticket in tickets:
                if self._unfinished.pop(ticket.request_id, None) is not None:
                    self.engine.abort_request(ticket.request_id)
