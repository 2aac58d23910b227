"""Requests as the engine makes them, for tests of its parts."""

from collections.abc import Sequence
from functools import cache
from itertools import count

from tokenizers import Tokenizer

import tests.tiny_models as tiny_models
from finlora.adapters.adapter import Adapter
from finlora.engine.detokenizer import Detokenizer
from finlora.engine.request import Request
from finlora.engine.sampling_params import SamplingParams

_ids = count()


@cache
def tiny_tokenizer() -> Tokenizer:
    tokenizer: Tokenizer = tiny_models.tokenizer().backend_tokenizer
    return tokenizer


def make_request(
    prompt: Sequence[int],
    params: SamplingParams | None = None,
    *,
    adapter: Adapter | None = None,
    seed: int = 0,
) -> Request:
    params = params or SamplingParams(temperature=0)
    detokenizer = Detokenizer(tiny_tokenizer(), list(prompt), params.stop)
    return Request(
        request_id=f"request-{next(_ids)}",
        prompt_token_ids=list(prompt),
        params=params,
        adapter=adapter,
        seed=seed,
        detokenizer=detokenizer,
    )
