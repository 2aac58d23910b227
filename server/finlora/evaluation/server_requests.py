"""A question as a request to the server's API, and the reply in its answer. Knows no connection."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finlora.errors import EngineError
from finlora.evaluation.answers import GENERATED_TOKENS, Question, Reply
from finlora.prompts import PromptTemplate


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What is posted where."""

    path: str
    body: dict[str, Any]


def request_of(question: Question, template: PromptTemplate | None) -> ServerRequest:
    """A classification where the prompt is of the model's own form: only that is calibrated."""
    text = question.text_in(template)
    if text is not None:
        return ServerRequest("/v1/classify", _classification(question, text))
    body: dict[str, Any] = {"model": question.model, "temperature": 0}
    if question.messages:
        messages = [asdict(message) for message in question.messages]
        body |= {"messages": messages, **_form(question.labels, shown=True)}
        return ServerRequest("/v1/chat/completions", body)
    body |= {"prompt": question.prompt, **_form(question.labels, shown=0)}
    return ServerRequest("/v1/completions", body)


def reply_in(answer: dict[str, Any], question: Question, seconds: float) -> Reply:
    """What the server said. Raises EngineError when it is of another form."""
    try:
        usage = answer["usage"]
        return Reply(
            text="" if question.labels else _text(answer["choices"][0]),
            probabilities=tuple(_probabilities(answer, question.labels)),
            num_prompt_tokens=usage["prompt_tokens"],
            num_output_tokens=0 if question.labels else usage["completion_tokens"],
            seconds=seconds,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise EngineError(f"the server answers in another form: {error!r} is missing") from error


def _classification(question: Question, text: str) -> dict[str, Any]:
    labels = list(question.labels)
    return {
        "model": question.model,
        "input": [text],
        "labels": labels,
        "return_probabilities": True,
    }


def _form(labels: Sequence[str], *, shown: int) -> dict[str, Any]:
    """`shown`: how this path asks for log-probabilities."""
    if not labels:
        return {"max_tokens": GENERATED_TOKENS}
    return {"logprobs": shown, "structured_outputs": {"choice": list(labels)}}


def _text(choice: dict[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


def _probabilities(answer: dict[str, Any], labels: Sequence[str]) -> list[float]:
    if not labels:
        return []
    if "data" in answer:
        found = answer["data"][0]["probabilities"]
        return [found[label] for label in labels]
    scores = answer["choices"][0]["logprobs"]["choice_logprobs"]
    return [math.exp(scores[label]) for label in labels]
