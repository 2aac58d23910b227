"""Tokens that a request took."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptTokensDetails:
    """Of the prompt's tokens, those taken from the prefix cache."""

    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens a request took; every candidate of `best_of` counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
