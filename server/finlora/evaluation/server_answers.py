"""Asks a running server over HTTP."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import httpx

from finlora.errors import EngineError
from finlora.evaluation.answers import GENERATED_TOKENS, Question, Reply
from finlora.server_url import server_url

CONCURRENCY = 32
TIMEOUT_SECONDS = 600.0


class ServerAnswers:
    """Keeps some requests to `/v1/completions` or `/v1/chat/completions` open at a time."""

    def __init__(
        self, url: str, *, api_key: str | None = None, concurrency: int = CONCURRENCY
    ) -> None:
        """`url`: of the server, with or without `/v1`. Raises ConfigError."""
        self.concurrency = concurrency
        self._url = server_url(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, limits=limits)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """(index, reply) in order. Raises EngineError when the server refuses or is gone."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                yield from enumerate(pool.map(self._ask, questions))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, str]:
        """What answers."""
        return {"server": self._url}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def _ask(self, question: Question) -> Reply:
        started = time.perf_counter()
        answer = self._post(_path(question), _body(question))
        return _reply(question, answer, time.perf_counter() - started)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._client.post(f"{self._url}{path}", json=body)
            answer = response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise EngineError(f"{self._url} does not answer: {error}") from error
        if not isinstance(answer, dict) or response.status_code != httpx.codes.OK:
            raise EngineError(f"{self._url} refuses ({response.status_code}): {_reason(answer)}")
        return answer


def _path(question: Question) -> str:
    return "/v1/chat/completions" if question.messages else "/v1/completions"


def _body(question: Question) -> dict[str, Any]:
    body: dict[str, Any] = {"model": question.model, "temperature": 0}
    if question.messages:
        body |= {"messages": [asdict(message) for message in question.messages]}
    else:
        body |= {"prompt": question.prompt}
    if not question.labels:
        return body | {"max_tokens": GENERATED_TOKENS}
    shown = True if question.messages else 0  # as either path asks for log-probabilities
    return body | {"logprobs": shown, "structured_outputs": {"choice": list(question.labels)}}


def _reply(question: Question, answer: dict[str, Any], seconds: float) -> Reply:
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        scores = choice["logprobs"]["choice_logprobs"] if question.labels else {}
        return Reply(
            text="" if question.labels else _text(question, choice),
            probabilities=tuple(math.exp(scores[label]) for label in question.labels),
            num_prompt_tokens=usage["prompt_tokens"],
            num_output_tokens=0 if question.labels else usage["completion_tokens"],
            seconds=seconds,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise EngineError(f"the server answers in another form: {error!r} is missing") from error


def _text(question: Question, choice: dict[str, Any]) -> str:
    text: str = choice["message"]["content"] if question.messages else choice["text"]
    return text


def _reason(answer: Any) -> str:
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return str(answer)[:200]
