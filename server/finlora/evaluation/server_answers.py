"""Asks a running server over HTTP."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from finlora.errors import EngineError
from finlora.evaluation.answers import Question, Reply
from finlora.evaluation.server_requests import reply_in, request_of
from finlora.prompts import PromptTemplate
from finlora.server_url import server_url

CONCURRENCY = 32
TIMEOUT_SECONDS = 600.0


class ServerAnswers:
    """Keeps some requests open at a time."""

    def __init__(
        self, url: str, *, api_key: str | None = None, concurrency: int = CONCURRENCY
    ) -> None:
        """`url`: of the server, with or without `/v1`. Raises ConfigError."""
        self.concurrency = concurrency
        self._url = server_url(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._templates: dict[str, PromptTemplate | None] = {}  # of models asked for labels
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, limits=limits)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """(index, reply) in order. Raises EngineError when the server refuses or is gone."""
        for model in {question.model for question in questions if question.labels}:
            if model not in self._templates:
                self._templates[model] = self._template(model)
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
        request = request_of(question, self._templates.get(question.model))
        answer = self._send("POST", request.path, request.body)
        return reply_in(answer, question, time.perf_counter() - started)

    def _template(self, model: str) -> PromptTemplate | None:
        """What the model's own prompts look like, if it says so."""
        card = self._send("GET", f"/v1/models/{quote(model)}")
        text = card.get("prompt_template")
        return None if text is None else PromptTemplate(text)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, f"{self._url}{path}", json=body)
            answer = response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise EngineError(f"{self._url} does not answer: {error}") from error
        if not isinstance(answer, dict) or response.status_code != httpx.codes.OK:
            raise EngineError(f"{self._url} refuses ({response.status_code}): {_reason(answer)}")
        return answer


def _reason(answer: Any) -> str:
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return str(answer)[:200]
