"""The users of a locust test. Importing this imports locust, which patches sockets.

Every request fires locust's request event once; a streamed one also for its first token and for
every further one, when they come.
"""

import random
import time
from abc import abstractmethod
from typing import ClassVar

from geventhttpclient.response import HTTPSocketPoolResponse
from locust import User, task

from loadtest import bodies
from loadtest.answers import classification_fault, completion_fault
from loadtest.bodies import Body
from loadtest.gevent_http import FAILURES, Answer, Connection, events, whole
from loadtest.headlines import Headline
from loadtest.mixes import Refusal
from loadtest.samples import Kind
from loadtest.session import Session
from loadtest.stream_times import Moment, StreamTimes

KINDS = {Moment.FIRST_TOKEN: Kind.FIRST_TOKEN, Moment.NEXT_TOKEN: Kind.NEXT_TOKEN}
DOWN_SECONDS = 1.0  # between tries when the server cannot be reached


class APIUser(User):
    """Sends one request after the other on one connection."""

    abstract = True
    session: ClassVar[Session | None] = None  # set by the locustfile when a test starts
    path: ClassVar[str]
    label: ClassVar[str]

    @abstractmethod
    def body(self, model: str, headline: Headline) -> Body:
        """What is sent."""

    @abstractmethod
    def read(self, response: HTTPSocketPoolResponse, begin: float) -> str | None:
        """Read a good answer; what is wrong with it, if anything."""

    def on_start(self) -> None:
        """Locust calls this when the user comes to life."""
        self.connection = Connection(self.shared.server, self.shared.plan.timeout_seconds)
        self._pause = 0.0

    def on_stop(self) -> None:
        """And this when it goes."""
        self.connection.close()

    @property
    def shared(self) -> Session:
        """What all users of the test share."""
        if self.session is None:
            raise RuntimeError("users live only while a test runs")
        return self.session

    def wait_time(self) -> float:
        """Seconds to the next request."""
        mean = self.shared.plan.think_seconds
        think = random.expovariate(1 / mean) if mean else 0.0
        return max(self._pause, think)

    @task
    def ask(self) -> None:
        """One request."""
        ask, headline = self.shared.next_work()
        body = self.body(ask.model, headline)
        self._pause = 0.0
        begin = time.perf_counter()
        try:
            with self.connection.post(self.path, body) as response:
                if ask.refusal is not None:
                    self._refused(whole(response), ask.refusal, begin)
                elif response.status_code != 200:
                    self._failed(whole(response), begin)
                else:
                    self.fire(Kind.REQUEST, self.label, begin, self.read(response, begin))
        except FAILURES as error:
            self._pause = DOWN_SECONDS
            self.fire(Kind.REQUEST, self.label, begin, type(error).__name__)

    def fire(self, kind: Kind, name: str, begin: float, error: str | None = None) -> None:
        """Tell locust, and with it our own statistics, what took from `begin` until now."""
        self.fire_seconds(kind, name, time.perf_counter() - begin, error)

    def fire_seconds(self, kind: Kind, name: str, seconds: float, error: str | None) -> None:
        """The same for a time that is known."""
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1e3,
            response_length=0,
            exception=None if error is None else RequestFailed(error),
            context={},
        )

    def _failed(self, answer: Answer, begin: float) -> None:
        self._pause = answer.pause_seconds
        self.fire(Kind.REQUEST, self.label, begin, f"{answer.status} {answer.code}")

    def _refused(self, answer: Answer, refusal: Refusal, begin: float) -> None:
        right = (answer.status, answer.code) == (refusal.status, refusal.code)
        error = None if right else f"{refusal.kind}: {answer.status} {answer.code}"
        self.fire(Kind.REFUSAL, refusal.kind, begin, error)


class RequestFailed(Exception):
    """A request that failed; its text has few values, as locust counts by it."""


class StreamingAPIUser(APIUser):
    """Reads an answer token by token."""

    abstract = True

    def read(self, response: HTTPSocketPoolResponse, begin: float) -> str | None:
        """Fires an event for every token."""
        times = StreamTimes(begin)
        for event in events(response):
            token = times.event(event, time.perf_counter())
            if token is not None:
                moment, seconds = token
                self.fire_seconds(KINDS[moment], self.label, seconds, None)
        return times.error


class PlainUser(APIUser):
    """Completions, the whole answer at once."""

    weight = 3
    path = "/v1/completions"
    label = "completions"

    def body(self, model: str, headline: Headline) -> Body:
        """What is sent."""
        return bodies.completion(model, headline, self.shared.plan.max_tokens)

    def read(self, response: HTTPSocketPoolResponse, begin: float) -> str | None:
        """It must have as many tokens as were asked for."""
        return completion_fault(whole(response).body, self.shared.plan.max_tokens)


class StreamingUser(StreamingAPIUser):
    """Completions as a stream."""

    weight = 3
    path = "/v1/completions"
    label = "completions, streamed"

    def body(self, model: str, headline: Headline) -> Body:
        """What is sent."""
        return bodies.completion(model, headline, self.shared.plan.max_tokens, stream=True)


class ChatUser(StreamingAPIUser):
    """Chats as a stream."""

    path = "/v1/chat/completions"
    label = "chat, streamed"

    def body(self, model: str, headline: Headline) -> Body:
        """What is sent."""
        return bodies.chat(model, headline, self.shared.plan.max_tokens)


class ClassifyUser(APIUser):
    """Labels with their probabilities."""

    path = "/v1/classify"
    label = "classify"

    def body(self, model: str, headline: Headline) -> Body:
        """What is sent."""
        return bodies.classification(model, headline)

    def read(self, response: HTTPSocketPoolResponse, begin: float) -> str | None:
        """It must give every label a probability."""
        return classification_fault(whole(response).body)
