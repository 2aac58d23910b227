"""Locust's entry: `locust -f loadtest/locustfile.py`, from the top of the repository.

Joins options, users and shape; README.md tells how to use it.
"""

import sys
from typing import Any

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.web import WebUI

from loadtest.controller import CANNOT_RUN, Controller
from loadtest.errors import LoadTestError
from loadtest.plan import add_options
from loadtest.users import APIUser, ChatUser, ClassifyUser, PlainUser, StreamingUser

__all__ = ["ChatUser", "ClassifyUser", "PlainUser", "PlannedShape", "StreamingUser"]

# As fast as locust likes to: how many users there are is the plan's alone.
SPAWN_RATE = 100.0


class PlannedShape(LoadTestShape):
    """Asks the plan how many users there should be."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """The same while the test is prepared: another answer would start it anew."""
        if APIUser.session is None:
            return 1, SPAWN_RATE
        users = APIUser.session.users_now()
        return None if users is None else (users, SPAWN_RATE)


def _add_options(parser: LocustArgumentParser, **_: Any) -> None:
    add_options(parser)


def _init(environment: Environment, web_ui: WebUI | None, **_: Any) -> None:
    try:
        controller = Controller(environment)
        controller.listen()
        if web_ui is None:
            controller.prepare()
    except LoadTestError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(CANNOT_RUN)
    if web_ui is not None and not web_ui.host:
        web_ui.host = "127.0.0.1"  # locust's own default is every address


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_init)
