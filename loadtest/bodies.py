"""Request bodies. Every answer is greedy; completions always have exactly `max_tokens` tokens."""

from typing import Any

from loadtest.headlines import Headline

QUESTION = "Is this news negative, neutral or positive? Answer with one word.\n"
LABELS = ["negative", "neutral", "positive"]

Body = dict[str, Any]


def completion(model: str, headline: Headline, max_tokens: int, *, stream: bool = False) -> Body:
    """For POST /v1/completions, the prompt as adapters are trained on it."""
    return {
        "model": model,
        "prompt": headline.prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }


def chat(model: str, headline: Headline, max_tokens: int) -> Body:
    """For POST /v1/chat/completions, as a stream. It may end before `max_tokens`."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION + headline.text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }


def classification(model: str, headline: Headline) -> Body:
    """For POST /v1/classify; labels and prompt are given, as not every adapter has its own."""
    return {
        "model": model,
        "input": headline.text,
        "labels": LABELS,
        "template": headline.template,
        "return_probabilities": True,
    }
