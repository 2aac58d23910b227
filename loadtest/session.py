"""One test from its first request to its report: what all its users share."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.client_cost import ClientCost, CostMeter
from loadtest.errors import LoadTestError
from loadtest.headlines import Headline, headlines, read_prompts
from loadtest.limits import Totals, missed, totals
from loadtest.mixes import Ask, Mix, asks, check_swap_storm
from loadtest.plan import Plan
from loadtest.samples import Kind, Recorder, Row
from loadtest.server_api import ServerAPI
from loadtest.server_counts import ServerGrowth, growth


@dataclass(frozen=True, slots=True)
class Report:
    """What a test found."""

    rows: list[Row]
    errors: dict[str, int]
    totals: Totals
    missed: list[str]
    seconds: float
    client: ClientCost
    server: ServerGrowth | None  # None: it was gone at the end
    server_gone: str | None  # how that showed
    models: tuple[str, ...]
    seed: int


class Session:
    """Hands out work and takes what came of it. All users of a process share one."""

    def __init__(self, plan: Plan, server: ServerAPI) -> None:
        """Raises LoadTestError when the test makes no sense against this server."""
        self.plan = plan
        self.server = server
        self.recorder = Recorder()
        self.models = _models(plan, server)
        self._ended = False
        self.begin()
        if plan.mix is Mix.SWAP_STORM:
            check_swap_storm(len(self.models), self._before.limit("max_loras"))
        self._asks = asks(
            plan.mix,
            self.models,
            broken=plan.broken,
            seed=plan.seed,
            zipf_exponent=plan.zipf_exponent,
        )
        self._headlines: Iterator[Headline] = headlines(read_prompts(plan.headlines), plan.seed)

    def begin(self) -> None:
        """Count and take the time from now on. Raises LoadTestError when the server is gone."""
        self._before = self.server.scrape()
        self._began = time.perf_counter()
        self._meter = CostMeter()

    def next_work(self) -> tuple[Ask, Headline]:
        """What the next request asks for."""
        return next(self._asks), next(self._headlines)

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def end(self) -> None:
        """No more users from now on."""
        self._ended = True

    def users_now(self) -> int | None:
        """The users there should be; None: the test is over."""
        if self._ended or self.recorder.num_requests >= self.plan.max_requests:
            return None
        return self.plan.schedule.users_at(self.elapsed())

    def note(
        self, kind: Kind, name: str, milliseconds: float, users: int, error: str | None
    ) -> None:
        """Something just came to its end."""
        self.recorder.add(
            kind,
            name,
            at_seconds=self.elapsed(),
            milliseconds=milliseconds,
            users=users,
            error=error,
        )

    def report(self) -> Report:
        """The figures until now, also of a server that is gone."""
        client, seconds = self._meter.read(), self.elapsed()
        seen = totals(self.recorder)
        server, gone = self._growth()
        return Report(
            rows=self.recorder.rows(),
            errors=dict(self.recorder.errors().most_common()),
            totals=seen,
            missed=missed(self.plan.limits, seen),
            seconds=seconds,
            client=client,
            server=server,
            server_gone=gone,
            models=self.models,
            seed=self.plan.seed,
        )

    def _growth(self) -> tuple[ServerGrowth | None, str | None]:
        try:
            return growth(self._before, self.server.scrape()), None
        except LoadTestError as error:
            return None, str(error)


def _models(plan: Plan, server: ServerAPI) -> tuple[str, ...]:
    listed = server.adapters()
    models = plan.models or tuple(name for name in listed if name not in plan.broken)
    if not models:
        raise LoadTestError("the server has no model but broken ones")
    return models
