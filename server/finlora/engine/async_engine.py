"""The engine behind asyncio: one thread steps it, coroutines await its outputs.

One queue with one message type leads into the thread; outputs come back one call per step.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from finlora.adapters.adapter import Adapter
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import FinishReason, Request, RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.stats import EngineStats
from finlora.errors import EngineOverloadedError, EngineStoppedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A wake-up that got lost must not stop the server for good.
IDLE_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Question(Generic[T]):
    ask: Callable[[LLMEngine], T]
    answer: Future[T]

    def put_to(self, engine: LLMEngine) -> None:
        if not self.answer.set_running_or_notify_cancel():
            return  # whoever asked has gone
        try:
            self.answer.set_result(self.ask(engine))
        except Exception as error:  # it belongs to who asked, not to the requests that run
            self.answer.set_exception(error)

    def refuse(self, error: EngineStoppedError) -> None:
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Message:
    """To the engine thread: any field that is set is acted on; an empty one only wakes it."""

    add: Request | None = None
    abort: str | None = None
    question: _Question[Any] | None = None
    stop: bool = False


@dataclass(frozen=True, slots=True)
class _Stream:
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[RequestOutput]


class AsyncEngine:
    """Owns the engine and its thread. `generate` may be called from any event loop."""

    def __init__(self, engine: LLMEngine, *, max_num_requests: int) -> None:
        self.spec = engine.spec
        self.max_model_len = engine.max_model_len
        self.tokenizer = engine.tokenizer
        self.chat_template = engine.chat_template
        self.vocab_size = engine.vocab_size
        self._engine = engine
        self._max_num_requests = max_num_requests
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._accepting = False
        self._failed = False
        engine.adapters.on_loaded = lambda: self._inbox.put(_Message())

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._accepting and not self._failed

    @property
    def failed(self) -> bool:
        """Whether the engine thread died; only a restart helps."""
        return self._failed

    def start(self) -> None:
        """Start the thread and take requests."""
        self._accepting = True
        self._thread.start()

    async def stop(self, drain_seconds: float) -> None:
        """Take no more requests, let the running ones finish, end the rest with an error."""
        self._accepting = False
        deadline = asyncio.get_running_loop().time() + drain_seconds
        while self._streams and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self._inbox.put(_Message(stop=True))
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self._engine.close()

    async def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        adapter: Adapter | None,
        request_id: str,
        cache_salt: str = "",
    ) -> AsyncGenerator[RequestOutput]:
        """Outputs of one request, the last with a finish reason. Closing the iterator aborts it.

        Raises, before the first output: EngineStoppedError, EngineOverloadedError,
        PromptTooLongError, RequestError, AdapterError; later: the error that ended the request.
        """
        if not self.ready:
            raise EngineStoppedError("the engine does not take requests now")
        if len(self._streams) >= self._max_num_requests:
            raise EngineOverloadedError(f"{len(self._streams)} requests are queued already")
        request = self._engine.make_request(
            request_id, prompt_token_ids, params, adapter=adapter, cache_salt=cache_salt
        )
        if adapter is not None:
            self._engine.adapters.expect(adapter)
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue())
        self._streams[request_id] = stream
        self._inbox.put(_Message(add=request))
        finished = False
        try:
            if self._failed:  # the thread may have died before it could see the request
                raise EngineStoppedError("the engine has failed")
            while not finished:
                output = await stream.outputs.get()
                finished = output.finish_reason is not None
                if output.error is not None:
                    raise output.error
                yield output
        finally:
            del self._streams[request_id]
            if not finished:
                self._inbox.put(_Message(abort=request_id))

    async def ask(self, question: Callable[[LLMEngine], T]) -> T:
        """What `question` gives on the engine's thread, between two steps; it must not block.

        Raises EngineStoppedError, and what the question raises.
        """
        if not self.ready:
            raise EngineStoppedError("the engine does not take questions now")
        answer: Future[T] = Future()
        self._inbox.put(_Message(question=_Question(question, answer)))
        if self._failed:  # the thread may have died before it could see the question
            raise EngineStoppedError("the engine has failed")
        return await asyncio.wrap_future(answer)

    def stats(self) -> EngineStats:
        """The engine's state."""
        return self._engine.stats()

    def _run(self) -> None:
        stopped = EngineStoppedError("the engine stopped before the request was done")
        try:
            while self._take_messages():
                self._deliver(self._engine.step())
            self._deliver(self._engine.fail_all(stopped))
        except BaseException:  # a panic of Rust's too: whoever waits must be told
            logger.exception("the engine thread died")
            self._failed = True
        self._end_streams(stopped)

    def _end_streams(self, stopped: EngineStoppedError) -> None:
        """End what waits for the thread, whether the engine knows of it or not."""
        while not self._inbox.empty():
            message = self._inbox.get()
            if message.question is not None:
                message.question.refuse(stopped)
        ended = [
            RequestOutput(request_id, finish_reason=FinishReason.ERROR, error=stopped)
            for request_id in list(self._streams)
        ]
        self._deliver(ended)  # a second end is not read

    def _take_messages(self) -> bool:
        """Act on what lies in the inbox, waiting for it when there is nothing to step."""
        idle = not self._engine.has_requests or self._engine.last_step_was_idle
        try:
            message = self._inbox.get(block=idle, timeout=IDLE_POLL_SECONDS if idle else None)
            while True:
                if message.stop:
                    return False
                if message.add is not None:
                    self._engine.add_request(message.add)
                if message.abort is not None:
                    self._engine.abort_request(message.abort)
                if message.question is not None:
                    message.question.put_to(self._engine)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, RequestOutput]]] = {}
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:  # else: the client has gone
                by_loop.setdefault(stream.loop, []).append((stream, output))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, deliveries)
            except RuntimeError:  # the loop closed under its requests
                logger.warning("an event loop closed with %d outputs to go", len(deliveries))


def _put_all(deliveries: list[tuple[_Stream, RequestOutput]]) -> None:
    for stream, output in deliveries:
        stream.outputs.put_nowait(output)
