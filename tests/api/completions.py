"""Completions through the openai package, and what is in them."""

from typing import Any

import openai
from openai.types import Completion, CompletionChoice

from finlora.api.tokens import Vocabulary
from tests import tiny_models

TOKENIZER = tiny_models.tokenizer().backend_tokenizer
TOKEN_IDS = {Vocabulary(TOKENIZER).label(i): i for i in range(TOKENIZER.get_vocab_size())}
PROMPT = "The bank raised its outlook after"


def text_of(client: openai.OpenAI, model: str, **fields: Any) -> str:
    fields = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}
    answer: Completion = client.completions.create(model=model, **fields)
    return answer.choices[0].text


def columns(choice: CompletionChoice) -> tuple[list[str], list[float]]:
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    return choice.logprobs.tokens, choice.logprobs.token_logprobs
