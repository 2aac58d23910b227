"""Labels from a running server: POST /v1/classify, several requests at once, answers in order."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from finlora.errors import ConfigError, FinLoRAError, RemoteError, RequestError
from finlora.offline.results import Classification, Text
from finlora.predict.labeller import Labeller, Question
from finlora.predict.served import (
    ServedModel,
    ServedModels,
    classifications,
    not_ours,
    parsed,
)
from finlora.server_url import server_url

TEXTS_IN_A_REQUEST = 32
REQUESTS_AT_ONCE = 4
CHUNKS_AHEAD = 2 * REQUESTS_AT_ONCE
MAX_TRIES = 8
MIN_SECONDS_TO_WAIT, MAX_SECONDS_TO_WAIT = 0.05, 60.0  # whatever a busy server says
TIMEOUT_SECONDS = 600
BUSY = (429, 502, 503, 504)
# About this very text or list of texts; any other answer would be the same for all.
OF_THE_TEXTS = (400, 413)

# A 400 that names one of these is about every text.
OF_THE_TASK = ("model", "labels", "template")

Answers = list[Classification | FinLoRAError]


class RemoteLabeller:
    """A server's model as a labeller."""

    def __init__(self, http: httpx.Client, question: Question) -> None:
        """Raises RemoteError, ConfigError."""
        self._http = http
        self._question = question
        model = self._model(question.adapter)
        self._name = model.id
        labels = question.labels or model.labels
        if not labels:
            raise ConfigError(f"{self._name} has no labels of its own: name them with --labels")
        self.labels: tuple[str, ...] = tuple(labels)
        self.identity: dict[str, Any] = {
            "server": str(http.base_url),
            "adapter": model.digest or self._name,
            "labels": list(self.labels),
            "template": question.template,
        }

    def each(self, texts: Iterable[Text]) -> Generator[Classification | FinLoRAError]:
        """Reads a few hundred texts ahead."""
        waiting: deque[Future[Answers]] = deque()
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            try:
                for chunk in _chunks(texts):
                    waiting.append(pool.submit(self._answers, chunk))
                    if len(waiting) == CHUNKS_AHEAD:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _answers(self, texts: Sequence[Text]) -> Answers:
        """Bad texts keep their places; the others are asked for together, then one by one."""
        good = [text for text in texts if isinstance(text, str)]
        answers = iter(self._classify(good) if good else [])
        return [text if isinstance(text, FinLoRAError) else next(answers) for text in texts]

    def _classify(self, texts: list[str]) -> Answers:
        body = {
            "model": self._name,
            "input": texts,
            "labels": list(self.labels),
            "template": self._question.template,
            "return_probabilities": True,
        }
        answer = self._ask("POST", "classify", json=body)
        if answer.status_code in OF_THE_TEXTS and _error(answer).get("param") not in OF_THE_TASK:
            if len(texts) == 1:
                return [RequestError(message_of(answer))]
            return [found for text in texts for found in self._classify([text])]
        return [*classifications(_good(answer), len(texts), self.labels)]

    def _model(self, name: str | None) -> ServedModel:
        if name is not None:
            return parsed(_good(self._ask("GET", f"models/{name}")), ServedModel)
        answer = _good(self._ask("GET", "models"))
        bases = [m for m in parsed(answer, ServedModels).data if m.parent is None]
        if not bases:
            raise not_ours(answer)
        return bases[0]

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        for number in range(MAX_TRIES):
            answer = self._try(method, path, **options)
            if answer.status_code not in BUSY:
                return answer
            time.sleep(seconds_to_wait(answer, number))
        return answer

    def _try(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise RemoteError(
                f"{self._http.base_url} does not answer ({error or type(error).__name__}): "
                "is `finlora serve` running there?"
            ) from error


@contextmanager
def remote_labeller(url: str, key: str | None, question: Question) -> Iterator[Labeller]:
    """A server for as long as it is needed. Raises ConfigError, RemoteError."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    base = f"{server_url(url)}/v1/"
    with httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT_SECONDS) as http:
        yield RemoteLabeller(http, question)


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    chunk: list[Text] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == TEXTS_IN_A_REQUEST:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _good(answer: httpx.Response) -> httpx.Response:
    """The answer. Raises RemoteError when it is an error."""
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise RemoteError(f"{answer.url}: {message_of(answer)}; put the key into FINLORA_API_KEY")
    if not answer.is_success:
        raise RemoteError(f"{answer.url}: {answer.status_code}: {message_of(answer)}")
    return answer


def message_of(answer: httpx.Response) -> str:
    """What an answer that is no good one says."""
    return str(_error(answer).get("message") or answer.text[:200] or answer.reason_phrase)


def _error(answer: httpx.Response) -> dict[str, Any]:
    """The error object of an answer, empty when it has none."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def seconds_to_wait(answer: httpx.Response, number: int) -> float:
    """Before the next try at a busy server, by what it says or longer each time."""
    try:
        seconds = float(answer.headers["retry-after"])
    except (KeyError, ValueError):
        seconds = min(0.5 * 2 ** min(number, 5), 10)
    # The constant first: it also wins against NaN.
    return min(max(MIN_SECONDS_TO_WAIT, seconds), MAX_SECONDS_TO_WAIT)
