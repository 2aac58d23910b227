"""The prompts of a request as checked token ids, with what `echo` gives back of them."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finlora.api.protocol import CompletionRequest, Prompt
from finlora.api.state import ServerState
from finlora.api.tokens import TextCursor, Vocabulary
from finlora.engine.structured import ChoiceTree
from finlora.errors import InvalidSamplingParamsError, PromptTooLongError, RequestError
from finlora.prompts import TextEncoder, encode_prompt

if TYPE_CHECKING:
    from finlora.engine.async_engine import AsyncEngine

# No tokenizer in use makes tokens longer than this on average: longer text need not be tokenised
# to know that it does not fit.
MAX_CHARACTERS_PER_TOKEN = 64
# Tokenising more than this takes milliseconds, in which the event loop should go on.
MAX_INLINE_CHARACTERS = 8192


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's tokens; its text and where in it each token begins, if it is to be echoed."""

    token_ids: list[int]
    text: str = ""
    offsets: tuple[int, ...] = ()


async def encode_prompts(state: ServerState, body: CompletionRequest) -> list[EncodedPrompt]:
    """All prompts of the request. Raises PromptTooLongError, RequestError."""
    engine, vocabulary = state.engine, state.vocabulary
    num_ids = min(vocabulary.size, engine.vocab_size)
    _check_token_ids("logit_bias", body.logit_bias, num_ids)
    _check_token_ids("stop_token_ids", body.stop_token_ids, num_ids)
    prompts = [_empty_document(engine)] if body.prompt is None else body.prompt
    for prompt in prompts:
        if isinstance(prompt, str):
            _check_length(prompt, engine.max_model_len)
        else:
            _check_token_ids("prompt", prompt, num_ids)

    def encode_all() -> list[EncodedPrompt]:
        return [_encode(engine, vocabulary, prompt, echo=body.echo) for prompt in prompts]

    if sum(map(len, prompts)) <= MAX_INLINE_CHARACTERS:
        return encode_all()
    return await asyncio.to_thread(encode_all)


async def encode_choice(state: ServerState, body: CompletionRequest) -> ChoiceTree | None:
    """The labels that the answer must be one of. Raises RequestError."""
    labels = body.choice
    if labels is None:
        return None
    encoder = state.text_encoder
    if sum(map(len, labels)) <= MAX_INLINE_CHARACTERS:
        tree = _encode_labels(encoder, labels, body.choice_param)
    else:
        tree = await asyncio.to_thread(_encode_labels, encoder, labels, body.choice_param)
    if "max_tokens" in body.model_fields_set and body.max_tokens < tree.max_tokens:
        raise RequestError(
            f"max_tokens must be at least {tree.max_tokens} here, or left out: the longest label "
            f"of {body.choice_param} takes {tree.max_tokens} tokens with its end token",
            param="max_tokens",
        )
    return tree


def _encode_labels(encoder: TextEncoder, labels: list[str], param: str) -> ChoiceTree:
    try:
        return ChoiceTree([encoder.encode_target(label) for label in labels])
    except InvalidSamplingParamsError as error:
        raise RequestError(f"{param}: {error}", param=param) from error


def _encode(
    engine: "AsyncEngine", vocabulary: Vocabulary, prompt: Prompt, *, echo: bool
) -> EncodedPrompt:
    if prompt == "":
        token_ids = _empty_document(engine)
        return EncodedPrompt(token_ids, "", (0,) * len(token_ids))
    if isinstance(prompt, str):
        token_ids = encode_prompt(engine.tokenizer, prompt)
        if not echo:
            return EncodedPrompt(token_ids)
        return EncodedPrompt(token_ids, prompt, tuple(vocabulary.prompt_offsets(prompt)))
    if not echo:
        return EncodedPrompt(prompt)
    cursor = TextCursor()
    offsets = tuple(cursor.advance(vocabulary.bytes_of(token_id)) for token_id in prompt)
    return EncodedPrompt(prompt, vocabulary.text(prompt), offsets)


def _empty_document(engine: "AsyncEngine") -> list[int]:
    """What stands before a document: the tokenizer's own beginning, else the end of another."""
    return encode_prompt(engine.tokenizer, "") or list(engine.spec.eos_token_ids[:1])


def _check_length(prompt: str, max_model_len: int) -> None:
    if len(prompt) > max_model_len * MAX_CHARACTERS_PER_TOKEN:
        raise PromptTooLongError(
            f"this model's context is {max_model_len} tokens; "
            f"{len(prompt)} characters are more than that"
        )


def _check_token_ids(param: str, token_ids: Iterable[int], num_ids: int) -> None:
    if not all(0 <= token_id < num_ids for token_id in token_ids):
        raise RequestError(f"{param}: token ids must be from 0 to {num_ids - 1}", param=param)
