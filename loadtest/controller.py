"""Joins a locust environment to sessions: one for every test that is started in it.

Importing this imports locust, which patches sockets.
"""

import os
import signal
import sys
from typing import Any

import gevent
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import LocalRunner

from loadtest.errors import LoadTestError
from loadtest.plan import plan_of
from loadtest.report import table, write
from loadtest.server_api import ServerAPI
from loadtest.session import Session
from loadtest.targets import check_target
from loadtest.users import APIUser

DEFAULT_HOST = "http://127.0.0.1:8000"
# Requests in flight at the end get so long: else the slowest would never be counted.
STOP_SECONDS = 60.0
LIMIT_MISSED, CANNOT_RUN = 1, 2


class Controller:
    """Listens to an environment's events."""

    def __init__(self, environment: Environment) -> None:
        """Raises LoadTestError for what this load test cannot be run with."""
        if not isinstance(environment.runner, LocalRunner):
            raise LoadTestError("one process is enough: without --master, --worker, --processes")
        environment.host = environment.host or DEFAULT_HOST
        environment.stop_timeout = environment.stop_timeout or STOP_SECONDS
        self._environment = environment
        self._runner = environment.runner
        self._prepared: Session | None = None

    def listen(self) -> None:
        """Take part in whatever happens from now on."""
        events = self._environment.events
        events.test_start.add_listener(self._start)
        events.request.add_listener(self._request)
        events.test_stop.add_listener(self._stop)
        events.quitting.add_listener(self._stop)
        # Locust's own handler comes only when a test that has a shape is over.
        gevent.signal_handler(signal.SIGTERM, self._end)

    def _end(self) -> None:
        session = APIUser.session or self._prepared
        if session is not None:
            session.end()

    def prepare(self) -> Session:
        """Ask the server what the next test needs to know. Raises LoadTestError."""
        plan = plan_of(vars(self._environment.parsed_options))
        host = check_target(self._environment.host or "", allow_remote=plan.allow_remote)
        server = ServerAPI(host, os.environ.get("FINLORA_API_KEY"))
        self._environment.host = server.address
        self._environment.user_classes[:] = self._answered(server)
        self._prepared = Session(plan, server)
        return self._prepared

    def _start(self, **_: Any) -> None:
        try:
            # Without a user interface it is prepared already; with one, its options count.
            session = self._prepared or self.prepare()
            self._prepared = None
            session.begin()
            APIUser.session = session
        except LoadTestError as error:
            self._environment.process_exit_code = CANNOT_RUN
            raise StopTest(str(error)) from None

    def _answered(self, server: ServerAPI) -> list[type[APIUser]]:
        """The chosen users but those whose route this server does not have."""
        chosen = [users for users in self._environment.user_classes if issubclass(users, APIUser)]
        answered = [users for users in chosen if server.has(users.path)]
        for users in chosen:
            if users not in answered:
                _say(f"left out {users.__name__}: the server has no {users.path}")
        if not answered:
            raise LoadTestError("the server has no route for any of the chosen users")
        return answered

    def _request(
        self,
        request_type: Any,
        name: str,
        response_time: float,
        exception: Exception | None = None,
        **_: Any,
    ) -> None:
        if APIUser.session is not None:
            error = None if exception is None else str(exception)
            users = self._runner.user_count
            APIUser.session.note(request_type, name, response_time, users, error)

    def _stop(self, **_: Any) -> None:
        """At the end of a test; when the process is ended in the middle of one, then."""
        session, APIUser.session = APIUser.session, None
        if session is None:
            return
        self._environment.process_exit_code = self._finish(session)

    def _finish(self, session: Session) -> int:
        report = session.report()
        _say(table(report))
        if session.plan.output is not None:
            write(report, session.recorder, session.plan.output)
        if self._runner.exceptions:
            _say("a user ended with an exception, see locust's own report")
            return CANNOT_RUN
        if report.server_gone is not None:
            return CANNOT_RUN
        return LIMIT_MISSED if report.missed else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
