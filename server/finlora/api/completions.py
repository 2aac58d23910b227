"""POST /v1/completions."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import fmean

from fastapi import APIRouter, Request, Response

from finlora.api.choices import ChoiceBuilder
from finlora.api.connection import read_body
from finlora.api.encoding import encode_prompts
from finlora.api.forms import demanded_form
from finlora.api.generation import Generation, answer_at_once, stream
from finlora.api.protocol.completions import Choice, Completion, CompletionRequest
from finlora.api.sequences import Candidate, candidates
from finlora.api.state import ServerState, server_state
from finlora.engine.request import RequestOutput

router = APIRouter()


@router.post("/completions")
async def create_completion(request: Request) -> Response:
    """Complete one or many prompts, at once or as a stream."""
    state = server_state(request)
    body = CompletionRequest.from_json(await read_body(request, state.settings.max_body_bytes))
    adapter = state.resolve(body.model)
    prompts = await encode_prompts(state, body)
    form = await demanded_form(state, body)
    sequences = candidates(
        body,
        prompts,
        form,
        max_tokens=body.max_tokens,
        prompt_logprobs=body.logprobs if body.echo else None,
        ranked=body.num_candidates > body.n,
    )
    generation = Generation(state, body, adapter, sequences, prefix="cmpl")
    builders = [_builder(state, body, candidate) for candidate in sequences]
    if not body.stream:
        return await answer_at_once(request, _answer(body, generation, builders))

    def parts(index: int, output: RequestOutput) -> Iterator[Choice]:
        part = builders[index].add(output)
        if _shows(part):
            yield part

    return await stream(request, generation.frames("text_completion", parts))


def _builder(state: ServerState, body: CompletionRequest, candidate: Candidate) -> ChoiceBuilder:
    return ChoiceBuilder(
        candidate.prompt_index * body.num_candidates + candidate.sample_index,
        candidate.prompt,
        state.vocabulary,
        echo=body.echo,
        logprobs=body.logprobs is not None,
        labels=body.labels,
    )


async def _answer(
    body: CompletionRequest, generation: Generation, builders: list[ChoiceBuilder]
) -> Completion:
    outputs = await generation.last_outputs()
    choices = [builder.add(output) for builder, output in zip(builders, outputs, strict=True)]
    best = _best(body, list(zip(choices, outputs, strict=True)))
    return Completion(**generation.head, choices=list(best), usage=generation.usage)


def _best(body: CompletionRequest, results: list[tuple[Choice, RequestOutput]]) -> Iterable[Choice]:
    """The `n` likeliest candidates of each prompt, numbered over all prompts."""
    size, n = body.num_candidates, body.n
    groups = [results[i : i + size] for i in range(0, len(results), size)]
    best = (result for group in groups for result in _likeliest(group, n))
    return (replace(choice, index=i) for i, (choice, _) in enumerate(best))


def _likeliest(
    group: list[tuple[Choice, RequestOutput]], n: int
) -> list[tuple[Choice, RequestOutput]]:
    if len(group) == n:
        return group
    return sorted(group, key=lambda result: _score(result[1]), reverse=True)[:n]


def _score(output: RequestOutput) -> float:
    """Mean log-probability per token, by which OpenAI ranks `best_of`."""
    return fmean(row.logprob for row in output.logprobs) if output.logprobs else 0.0


def _shows(part: Choice) -> bool:
    has_tokens = part.logprobs is not None and bool(part.logprobs.tokens)
    return bool(part.text) or has_tokens or part.finish_reason is not None
