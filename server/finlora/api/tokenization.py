"""POST /tokenize and /detokenize, GET /tokenizer_info: the base's tokenizer, as vLLM shows it."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from finlora.api.connection import read_body
from finlora.api.encoding import MAX_INLINE_CHARACTERS, check_ids, encode_chat, encode_text, num_ids
from finlora.api.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from finlora.api.state import ServerState, server_state

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """The token ids of a prompt or of a chat."""
    state = server_state(request)
    body = TokenizeRequest.from_json(await read_body(request, state.settings.max_body_bytes))
    _check_model(state, body.model)
    token_ids = await _token_ids(state, body)
    labels = await _labels(state, token_ids) if body.return_token_strs else None
    return _json(
        {
            "count": len(token_ids),
            "max_model_len": state.engine.max_model_len,
            "tokens": token_ids,
            "token_strs": labels,
        }
    )


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """The text of token ids, control tokens included."""
    state = server_state(request)
    body = DetokenizeRequest.from_json(await read_body(request, state.settings.max_body_bytes))
    _check_model(state, body.model)
    check_ids("tokens", body.tokens, num_ids(state))
    if len(body.tokens) <= MAX_INLINE_CHARACTERS:
        return _json({"prompt": state.vocabulary.text(body.tokens)})
    return _json({"prompt": await asyncio.to_thread(state.vocabulary.text, body.tokens)})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """What a client needs to write prompts as the base expects them."""
    state = server_state(request)
    engine = state.engine
    template = engine.chat_template
    added = engine.tokenizer.get_added_tokens_decoder()
    return _json(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": state.vocabulary.size,
            "model_max_length": engine.max_model_len,
            "eos_token_ids": list(engine.spec.eos_token_ids),
            "added_tokens_decoder": {
                str(token_id): {"content": token.content, "special": token.special}
                for token_id, token in sorted(added.items())
            },
            "chat_template": None if template is None else template.source,
            **({} if template is None else template.special_tokens),
        }
    )


async def _token_ids(state: ServerState, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        chat = await encode_chat(
            state, body.messages, add_generation_prompt=body.add_generation_prompt
        )
        return chat.token_ids
    return await encode_text(state, body.prompt or "", add_special_tokens=body.add_special_tokens)


async def _labels(state: ServerState, token_ids: list[int]) -> list[str]:
    def make() -> list[str]:
        return [state.vocabulary.label(token_id) for token_id in token_ids]

    return make() if len(token_ids) <= MAX_INLINE_CHARACTERS else await asyncio.to_thread(make)


def _check_model(state: ServerState, model: str | None) -> None:
    if model is not None:
        state.resolve(model)


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
