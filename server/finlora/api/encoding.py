"""The prompts of a request as checked token ids, with what `echo` gives back of them."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finlora.api.protocol.completions import CompletionRequest, Prompt
from finlora.api.protocol.messages import Message
from finlora.api.protocol.sampling import SamplingRequest
from finlora.api.state import ServerState
from finlora.api.tokens import TextCursor, Vocabulary
from finlora.errors import PromptTooLongError, RequestError
from finlora.prompts import PromptTemplate, encode_prompt

if TYPE_CHECKING:
    from finlora.engine.async_engine import AsyncEngine

# No tokenizer in use makes tokens longer than this on average: longer text need not be tokenised
# to know that it does not fit.
MAX_CHARACTERS_PER_TOKEN = 64
# Tokenising more than this takes milliseconds, in which the event loop should go on.
MAX_INLINE_CHARACTERS = 8192
MAX_INLINE_MESSAGES = 16


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's tokens; its text and where in it each token begins, if it is to be echoed."""

    token_ids: list[int]
    text: str = ""
    offsets: tuple[int, ...] = ()


async def encode_prompts(state: ServerState, body: CompletionRequest) -> list[EncodedPrompt]:
    """All prompts of the request. Raises PromptTooLongError, RequestError."""
    engine, vocabulary = state.engine, state.vocabulary
    check_sampling_ids(state, body)
    prompts = [_empty_document(engine)] if body.prompt is None else body.prompt
    for prompt in prompts:
        if isinstance(prompt, str):
            _check_length(len(prompt), engine.max_model_len, param="prompt")
        else:
            check_ids("prompt", prompt, num_ids(state))

    def encode_all() -> list[EncodedPrompt]:
        return [_encode(engine, vocabulary, prompt, echo=body.echo) for prompt in prompts]

    if sum(map(len, prompts)) <= MAX_INLINE_CHARACTERS:
        return encode_all()
    return await asyncio.to_thread(encode_all)


def num_ids(state: ServerState) -> int:
    """How many token ids a client may name."""
    return min(state.vocabulary.size, state.engine.vocab_size)


def check_sampling_ids(state: ServerState, body: SamplingRequest) -> None:
    """Check the token ids in the sampling fields. Raises RequestError."""
    check_ids("logit_bias", body.logit_bias, num_ids(state))
    check_ids("stop_token_ids", body.stop_token_ids, num_ids(state))


def check_ids(param: str, token_ids: Iterable[int], num_ids: int) -> None:
    """Raises RequestError when a token id is not among the first `num_ids`."""
    if not all(0 <= token_id < num_ids for token_id in token_ids):
        raise RequestError(f"{param}: token ids must be from 0 to {num_ids - 1}", param=param)


async def encode_text(state: ServerState, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a prompt as it stands. Raises PromptTooLongError."""
    _check_length(len(text), state.engine.max_model_len, param="prompt")

    def encode() -> list[int]:
        return state.engine.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    return encode() if len(text) <= MAX_INLINE_CHARACTERS else await asyncio.to_thread(encode)


async def encode_chat(
    state: ServerState, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> EncodedPrompt:
    """The chat as the base's template writes it. Raises PromptTooLongError, RequestError."""
    template = state.chat_template
    num_characters = sum(len(message.content) for message in messages)
    _check_length(num_characters, state.engine.max_model_len, param="messages")

    def encode() -> EncodedPrompt:
        turns = [message.for_template() for message in messages]
        return EncodedPrompt(template.encode(turns, add_generation_prompt=add_generation_prompt))

    if num_characters <= MAX_INLINE_CHARACTERS and len(messages) <= MAX_INLINE_MESSAGES:
        return encode()
    return await asyncio.to_thread(encode)


async def encode_inputs(
    state: ServerState, template: PromptTemplate, inputs: Sequence[str]
) -> list[EncodedPrompt]:
    """The template filled with each text. Raises PromptTooLongError."""
    encoder, max_model_len = state.text_encoder, state.engine.max_model_len
    for text in inputs:
        _check_length(len(template.text) + len(text), max_model_len, param="input")

    def encode_all() -> list[EncodedPrompt]:
        return [EncodedPrompt(encoder.encode_template(template, text)) for text in inputs]

    if sum(map(len, inputs)) + len(inputs) * len(template.text) <= MAX_INLINE_CHARACTERS:
        return encode_all()
    return await asyncio.to_thread(encode_all)


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


def check_fits(state: ServerState, prompt: EncodedPrompt, num_more: int, what: str) -> None:
    """Raises PromptTooLongError unless the prompt and so many tokens more fit the context.

    `what` begins with the field that the prompt came in.
    """
    limit, num_prompt = state.engine.max_model_len, len(prompt.token_ids)
    if num_prompt + num_more > limit:
        raise PromptTooLongError(
            f"{what}: this model's context is {limit} tokens; {num_prompt} of prompt and "
            f"{num_more} of answer make {num_prompt + num_more}",
            param=what.partition(".")[0],
        )


def _check_length(num_characters: int, max_model_len: int, *, param: str) -> None:
    if num_characters > max_model_len * MAX_CHARACTERS_PER_TOKEN:
        raise PromptTooLongError(
            f"this model's context is {max_model_len} tokens; "
            f"{num_characters} characters of {param} are more than that",
            param=param,
        )
