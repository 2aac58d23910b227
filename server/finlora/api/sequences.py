"""One request of the API as the sequences the engine runs: `best_of` for each prompt."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finlora.adapters.adapter import Adapter
from finlora.api.encoding import EncodedPrompt
from finlora.api.forms import Form
from finlora.api.protocol.fields import INT64, MAX_SEQUENCES
from finlora.api.protocol.sampling import SamplingRequest
from finlora.api.request_record import begin_sequence, forget_sequence
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import EngineStoppedError

if TYPE_CHECKING:
    from finlora.engine.async_engine import AsyncEngine
    from finlora.engine.llm_engine import LLMEngine


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sequence to draw."""

    prompt_index: int
    sample_index: int
    prompt: EncodedPrompt
    params: SamplingParams


def candidates(
    body: SamplingRequest,
    prompts: Sequence[EncodedPrompt],
    form: Form,
    *,
    max_tokens: int,
    prompt_logprobs: int | None = None,
    ranked: bool = False,
) -> list[Candidate]:
    """All sequences of the request, those of one prompt side by side.

    `ranked`: each needs its log-probabilities, though the client does not.
    """
    base = _sampling_params(body, form, max_tokens, prompt_logprobs, ranked=ranked)
    # Each of n is what a request for one with seed + i would get.
    params = [
        base if body.seed is None else replace(base, seed=(body.seed + i) % INT64)
        for i in range(body.num_candidates)
    ]
    return [
        Candidate(p, s, prompt, params[s])
        for p, prompt in enumerate(prompts)
        for s in range(body.num_candidates)
    ]


async def run_all(
    engine: "AsyncEngine",
    sequences: Sequence[Candidate],
    *,
    adapter: Adapter | None,
    request_id: str,
    cache_salt: str,
    max_concurrent: int = MAX_SEQUENCES,
) -> AsyncGenerator[tuple[int, RequestOutput]]:
    """Outputs of all sequences with their index, as they come.

    The first error ends it. Whatever ends it, no sequence is left running.
    """
    arrived: asyncio.Queue[tuple[int, RequestOutput] | Exception] = asyncio.Queue()
    places = asyncio.Semaphore(max_concurrent)

    async def pump(index: int, sequence: Candidate) -> None:
        async with places:
            await run(index, sequence)

    async def run(index: int, sequence: Candidate) -> None:
        begin_sequence(f"{request_id}-{index}", sequence.prompt.token_ids)
        outputs = engine.generate(
            sequence.prompt.token_ids,
            sequence.params,
            adapter=adapter,
            request_id=f"{request_id}-{index}",
            cache_salt=cache_salt,
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    arrived.put_nowait((index, output))
        except Exception as error:
            forget_sequence(f"{request_id}-{index}")
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(pump(i, sequence)) for i, sequence in enumerate(sequences)]
    try:
        num_left = len(tasks)
        while num_left:
            item = await arrived.get()
            if isinstance(item, Exception):
                await _withdraw(engine, request_id, tasks)
                raise item
            num_left -= item[1].finish_reason is not None
            yield item
    finally:
        _cancel(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)


def _cancel(tasks: Iterable["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()


async def _withdraw(
    engine: "AsyncEngine", request_id: str, tasks: Sequence["asyncio.Task[None]"]
) -> None:
    """End the other sequences of a request that failed; its client has not left."""
    others = [f"{request_id}-{i}" for i, task in enumerate(tasks) if not task.done()]
    # First, so that none begins after the others have been withdrawn. That they end they tell the
    # engine only once this waits: later than it is asked to.
    _cancel(tasks)

    def withdraw(engine: "LLMEngine") -> None:
        for other in others:
            engine.abort_request(other, is_withdrawn=True)

    if others:
        with suppress(EngineStoppedError):  # it is stopping
            await engine.ask(withdraw)


def _sampling_params(
    body: SamplingRequest,
    form: Form,
    max_tokens: int,
    prompt_logprobs: int | None,
    *,
    ranked: bool,
) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens if form.choice is None else form.choice.max_tokens,
        temperature=body.temperature,
        # OpenAI allows a top_p of 0; the smallest set that reaches it is the likeliest token.
        top_p=body.top_p or 1.0,
        top_k=body.top_k if body.top_p else 1,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=0 if ranked and body.num_logprobs is None else body.num_logprobs,
        prompt_logprobs=prompt_logprobs,
        choice=form.choice,
        grammar=form.grammar,
        stream=body.stream,
    )
