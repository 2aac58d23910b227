"""Whether answers are what was asked for: a fast server that answers nonsense is no success."""

import math
from typing import Any

import orjson

from loadtest.bodies import LABELS


def completion_fault(content: bytes, max_tokens: int) -> str | None:
    """What is wrong with the answer to a completion, if anything."""
    answer = _object(content)
    try:
        made = answer["usage"]["completion_tokens"]
    except (LookupError, TypeError):
        return "no completion"
    return None if made == max_tokens else f"{made} tokens instead of {max_tokens}"


def classification_fault(content: bytes) -> str | None:
    """What is wrong with the answer to a classification, if anything."""
    answer = _object(content)
    try:
        probabilities = answer["data"][0]["probabilities"]
        fits = {*probabilities} == {*LABELS} and math.isclose(
            sum(probabilities.values()), 1, abs_tol=1e-3
        )
    except (LookupError, TypeError, AttributeError):
        return "no classification"
    return None if fits else "no probabilities of the labels"


def _object(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:
        return None
