"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from finlora.api.chat_choices import ChatChoiceBuilder
from finlora.api.connection import read_body
from finlora.api.encoding import check_fits, check_sampling_ids, encode_chat
from finlora.api.forms import demanded_form
from finlora.api.generation import Generation, answer_at_once, stream
from finlora.api.protocol.chat import ChatRequest
from finlora.api.protocol.chat_answers import ChatCompletion
from finlora.api.sequences import candidates
from finlora.api.state import server_state

router = APIRouter()


@router.post("/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answer a chat, at once or as a stream."""
    state = server_state(request)
    body = ChatRequest.from_json(await read_body(request, state.settings.max_body_bytes))
    adapter = state.resolve(body.model)
    check_sampling_ids(state, body)
    prompt = await encode_chat(state, body.messages)
    form = await demanded_form(state, body)
    room = state.engine.max_model_len - len(prompt.token_ids)
    max_tokens = max(room, 1) if body.max_output is None else body.max_output
    check_fits(state, prompt, max_tokens, "messages")
    sequences = candidates(body, [prompt], form, max_tokens=max_tokens)
    generation = Generation(state, body, adapter, sequences, prefix="chatcmpl")
    builders = [
        ChatChoiceBuilder(i, state.vocabulary, logprobs=body.logprobs, labels=body.labels)
        for i in range(body.n)
    ]
    if not body.stream:
        return await answer_at_once(request, _answer(generation, builders))
    frames = generation.frames(
        "chat.completion.chunk", lambda index, output: builders[index].chunks(output)
    )
    return await stream(request, frames)


async def _answer(generation: Generation, builders: list[ChatChoiceBuilder]) -> ChatCompletion:
    outputs = await generation.last_outputs()
    choices = [builder.whole(output) for builder, output in zip(builders, outputs, strict=True)]
    return ChatCompletion(**generation.head, choices=choices, usage=generation.usage)
