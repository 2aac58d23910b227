"""What completions and chats do alike: run the sequences of a request, count, answer or stream."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypedDict

import orjson
from fastapi import Request, Response

from finlora.adapters.adapter import Adapter
from finlora.api.connection import run_while_connected
from finlora.api.protocol.sampling import SamplingRequest
from finlora.api.protocol.usage import PromptTokensDetails, Usage
from finlora.api.sequences import Candidate, run_all
from finlora.api.sse import DONE, EventStream, frame_of
from finlora.api.state import ServerState
from finlora.engine.request import RequestOutput
from finlora.errors import InvalidSamplingParamsError, RequestError

Parts = Callable[[int, RequestOutput], Iterable[Any]]


class Head(TypedDict):
    """What every answer and every event begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


def head_of(state: ServerState, model: str, adapter: Adapter | None, prefix: str) -> Head:
    """A new answer's beginning; `prefix` tells of what kind it is."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": _fingerprint(state.engine.spec.fingerprint, adapter),
    }


def usage_of(outputs: Mapping[int, RequestOutput], num_per_prompt: int = 1) -> Usage:
    """Tokens by the last output of every sequence so far; sequences of one prompt share it."""
    by_prompt: dict[int, RequestOutput] = {}
    for index in sorted(outputs):
        by_prompt.setdefault(index // num_per_prompt, outputs[index])
    num_prompt = sum(output.num_prompt_tokens for output in by_prompt.values())
    num_output = sum(output.num_output_tokens for output in outputs.values())
    num_cached = sum(output.num_cached_tokens for output in by_prompt.values())
    details = PromptTokensDetails(num_cached)
    return Usage(num_prompt, num_output, num_prompt + num_output, details)


class Generation:
    """The sequences of one request while they run."""

    def __init__(
        self,
        state: ServerState,
        body: SamplingRequest,
        adapter: Adapter | None,
        sequences: Sequence[Candidate],
        *,
        prefix: str,
    ) -> None:
        self.head = head_of(state, body.model, adapter, prefix)
        self._state = state
        self._body = body
        self._adapter = adapter
        self._sequences = sequences
        self._last_outputs: dict[int, RequestOutput] = {}

    @property
    def usage(self) -> Usage:
        """Tokens taken so far."""
        return usage_of(self._last_outputs, self._body.num_candidates)

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        """Outputs of all sequences with their index, as they come."""
        running = run_all(
            self._state.engine,
            self._sequences,
            adapter=self._adapter,
            request_id=self.head["id"],
            cache_salt=self._body.cache_salt,
        )
        try:
            async with aclosing(running) as outputs:
                async for index, output in outputs:
                    self._last_outputs[index] = output
                    yield index, output
        except InvalidSamplingParamsError as error:
            raise self._named(error) from error

    def _named(self, error: InvalidSamplingParamsError) -> RequestError:
        """An error of a grammar, by the field that the grammar came in."""
        form = self._body.form
        if error.param != "grammar" or form is None:
            return error
        return RequestError(f"{form.param}: {error}", param=form.param)

    async def last_outputs(self) -> list[RequestOutput]:
        """The one output of every sequence that is not streamed, in order."""
        async with aclosing(self.outputs()) as outputs:
            async for _ in outputs:
                pass
        return [self._last_outputs[index] for index in range(len(self._sequences))]

    async def frames(self, kind: str, parts: Parts) -> AsyncGenerator[bytes]:
        """Server-sent events: one for each part that `parts` makes of an output."""
        head = {"object": kind, **self.head}
        # All frames begin alike; that is encoded once.
        before = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        async with aclosing(self.outputs()) as outputs:
            async for index, output in outputs:
                for part in parts(index, output):
                    yield before + orjson.dumps(part) + self._frame_end()
        if self._body.includes_usage:
            yield frame_of({**head, "choices": [], "usage": self.usage})
        yield DONE

    def _frame_end(self) -> bytes:
        """What follows the choice of an event."""
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return b"]}\n\n"
        usage = self.usage if options.continuous_usage_stats else None
        return b'],"usage":' + orjson.dumps(usage) + b"}\n\n"


async def answer_at_once(request: Request, answer: Coroutine[Any, Any, Any]) -> Response:
    """The whole answer as JSON. Raises ClientDisconnect when nobody waits for it any more."""
    content = await run_while_connected(request.receive, answer)
    return Response(orjson.dumps(content), media_type="application/json")


async def stream(request: Request, frames: AsyncGenerator[bytes]) -> Response:
    """The events as they come.

    Whatever can be refused is refused before the first one, so it still gets its status.
    """
    first = await run_while_connected(request.receive, _first(frames))
    return EventStream(first, frames)


async def _first(frames: AsyncGenerator[bytes]) -> bytes:
    return await anext(frames)


def _fingerprint(base: str, adapter: Adapter | None) -> str:
    return f"{base[:12]}-{'base' if adapter is None else adapter.digest[:12]}"
