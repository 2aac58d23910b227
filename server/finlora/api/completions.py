"""POST /v1/completions."""

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from statistics import fmean

import orjson
from fastapi import APIRouter, Request, Response

from finlora.adapters.adapter import Adapter
from finlora.api.choices import ChoiceBuilder
from finlora.api.connection import read_body, run_while_connected
from finlora.api.encoding import encode_choice, encode_prompts
from finlora.api.protocol import (
    Choice,
    Completion,
    CompletionRequest,
    PromptTokensDetails,
    Usage,
)
from finlora.api.sequences import Candidate, candidates, run_all
from finlora.api.sse import DONE, EventStream, frame_of
from finlora.api.state import ServerState, server_state
from finlora.engine.request import RequestOutput

router = APIRouter()


@router.post("/completions")
async def create_completion(request: Request) -> Response:
    """Complete one or many prompts, at once or as a stream."""
    state = server_state(request)
    body = CompletionRequest.from_json(await read_body(request, state.settings.max_body_bytes))
    adapter = state.resolve(body.model)
    prompts, choice = await encode_prompts(state, body), await encode_choice(state, body)
    run = _Run(state, body, adapter, candidates(body, prompts, choice))
    if not body.stream:
        answer = await run_while_connected(request.receive, run.answer())
        return Response(orjson.dumps(answer), media_type="application/json")
    frames = run.frames()
    # Whatever can be refused is refused before the first frame, so it still gets its status.
    first = await run_while_connected(request.receive, _first(frames))
    return EventStream(first, frames)


async def _first(frames: AsyncGenerator[bytes]) -> bytes:
    return await anext(frames)


class _Run:
    """One request from its encoded prompts to its answer."""

    def __init__(
        self,
        state: ServerState,
        body: CompletionRequest,
        adapter: Adapter | None,
        sequences: list[Candidate],
    ) -> None:
        self._state = state
        self._body = body
        self._adapter = adapter
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._fingerprint = _fingerprint(state.engine.spec.fingerprint, adapter)
        self._candidates = sequences
        self._builders = [self._builder(candidate) for candidate in self._candidates]
        self._last_outputs: dict[int, RequestOutput] = {}

    async def answer(self) -> Completion:
        """The whole completion."""
        results: dict[int, _Result] = {}
        async with aclosing(self._outputs()) as outputs:
            async for index, output in outputs:
                results[index] = _Result(self._builders[index].add(output), _score(output))
        in_order = [results[index] for index in range(len(self._candidates))]
        return Completion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            system_fingerprint=self._fingerprint,
            choices=list(self._best(in_order)),
            usage=self._usage(),
        )

    async def frames(self) -> AsyncGenerator[bytes]:
        """The completion as server-sent events."""
        with_usage = bool(self._body.stream_options and self._body.stream_options.include_usage)
        head = {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._body.model,
            "system_fingerprint": self._fingerprint,
        }
        # All frames but the last differ in their choice alone; the rest is encoded once.
        before = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        after = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        async with aclosing(self._outputs()) as outputs:
            async for index, output in outputs:
                part = self._builders[index].add(output)
                if _shows(part):
                    yield before + orjson.dumps(part) + after
        if with_usage:
            yield frame_of({**head, "choices": [], "usage": self._usage()})
        yield DONE

    async def _outputs(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        running = run_all(
            self._state.engine,
            self._candidates,
            adapter=self._adapter,
            request_id=self._id,
            cache_salt=self._body.cache_salt,
        )
        async with aclosing(running) as outputs:
            async for index, output in outputs:
                self._last_outputs[index] = output
                yield index, output

    def _best(self, results: list["_Result"]) -> Iterable[Choice]:
        """The `n` likeliest candidates of each prompt, numbered over all prompts."""
        size, n = self._body.num_candidates, self._body.n
        groups = [results[i : i + size] for i in range(0, len(results), size)]
        best = (result for group in groups for result in _likeliest(group, n))
        return (replace(result.choice, index=i) for i, result in enumerate(best))

    def _usage(self) -> Usage:
        last = [self._last_outputs[index] for index in range(len(self._candidates))]
        # Candidates of one prompt share it.
        per_prompt = last[:: self._body.num_candidates]
        num_prompt = sum(output.num_prompt_tokens for output in per_prompt)
        num_output = sum(output.num_output_tokens for output in last)
        num_cached = sum(output.num_cached_tokens for output in per_prompt)
        details = PromptTokensDetails(num_cached)
        return Usage(num_prompt, num_output, num_prompt + num_output, details)

    def _builder(self, candidate: Candidate) -> ChoiceBuilder:
        body = self._body
        return ChoiceBuilder(
            candidate.prompt_index * body.num_candidates + candidate.sample_index,
            candidate.prompt,
            self._state.vocabulary,
            echo=body.echo,
            logprobs=body.logprobs is not None,
            labels=body.choice or (),
        )


@dataclass(frozen=True, slots=True)
class _Result:
    choice: Choice
    score: float


def _likeliest(group: list[_Result], n: int) -> list[_Result]:
    if len(group) == n:
        return group
    return sorted(group, key=lambda result: result.score, reverse=True)[:n]


def _score(output: RequestOutput) -> float:
    """Mean log-probability per token, by which OpenAI ranks `best_of`."""
    return fmean(row.logprob for row in output.logprobs) if output.logprobs else 0.0


def _shows(part: Choice) -> bool:
    has_tokens = part.logprobs is not None and bool(part.logprobs.tokens)
    return bool(part.text) or has_tokens or part.finish_reason is not None


def _fingerprint(base: str, adapter: Adapter | None) -> str:
    return f"{base[:12]}-{'base' if adapter is None else adapter.digest[:12]}"
