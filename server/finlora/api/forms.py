"""The form an answer must have, made ready for the engine."""

import asyncio
from dataclasses import dataclass

from finlora.api.encoding import MAX_INLINE_CHARACTERS
from finlora.api.protocol.body import require
from finlora.api.protocol.sampling import SamplingRequest
from finlora.api.state import ServerState
from finlora.engine.constraints import Grammar, GrammarKind
from finlora.engine.structured import ChoiceTree
from finlora.errors import InvalidSamplingParamsError, RequestError
from finlora.prompts import TextEncoder


@dataclass(frozen=True, slots=True)
class Form:
    """One of some labels, a text of a grammar, or anything."""

    choice: ChoiceTree | None = None
    grammar: Grammar | None = None


async def demanded_form(state: ServerState, body: SamplingRequest) -> Form:
    """What the request demands. Raises RequestError."""
    wanted = body.form
    if wanted is None:
        return Form()
    if wanted.kind is not None:
        return Form(grammar=await _grammar(state, wanted.kind, wanted.source, wanted.param))
    tree = await label_tree(state.text_encoder, wanted.labels, wanted.param)
    for name in body.limits & body.model_fields_set:
        require(
            getattr(body, name) >= tree.max_tokens,
            name,
            f"must be at least {tree.max_tokens} here, or left out: the longest label of "
            f"{wanted.param} takes {tree.max_tokens} tokens with its end token",
        )
    return Form(choice=tree)


async def _grammar(state: ServerState, kind: GrammarKind, source: str, param: str) -> Grammar:
    try:
        return await state.grammars.get(kind, source)
    except InvalidSamplingParamsError as error:
        raise RequestError(f"{param}: {error}", param=param) from error


async def label_tree(encoder: TextEncoder, labels: tuple[str, ...], param: str) -> ChoiceTree:
    """The tree of the labels' tokens. Raises RequestError that names `param`."""
    if sum(map(len, labels)) <= MAX_INLINE_CHARACTERS:
        return _encode_labels(encoder, labels, param)
    return await asyncio.to_thread(_encode_labels, encoder, labels, param)


def _encode_labels(encoder: TextEncoder, labels: tuple[str, ...], param: str) -> ChoiceTree:
    try:
        return ChoiceTree([encoder.encode_target(label) for label in labels])
    except InvalidSamplingParamsError as error:
        raise RequestError(f"{param}: {error}", param=param) from error
