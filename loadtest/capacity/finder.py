"""Finds the capacity: searches, then tries what it found once more with other arrivals."""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.capacity.open_loop import OpenLoop
from loadtest.capacity.search import Bracket, search
from loadtest.capacity.steps import Step, Timing, measure

MAX_CONFIRMATIONS = 3


@dataclass(frozen=True)
class Goal:
    """What is searched for, and within which bounds."""

    objective_seconds: float
    start: float = 2.0
    lowest: float = 0.25
    highest: float = 512.0
    tolerance: float = 0.1
    seed: int = 1
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate that held twice; None: none did."""

    rate: float | None
    bracket: Bracket
    steps: list[Step]


class Finder:
    """Runs one search against one server."""

    def __init__(self, loop: OpenLoop, goal: Goal, say: Callable[[Step], None]) -> None:
        self._loop = loop
        self._goal = goal
        self._say = say
        self._steps: list[Step] = []

    async def find(self) -> Capacity:
        """Search, confirm."""
        bracket = await self._search()
        rate = None if bracket.holds is None else await self._confirm(bracket.holds)
        return Capacity(rate, bracket, self._steps)

    async def _search(self) -> Bracket:
        goal = self._goal
        rates = search(
            goal.start, tolerance=goal.tolerance, lowest=goal.lowest, highest=goal.highest
        )
        rate = next(rates)
        while True:
            step = await self._measure(rate, goal.seed)
            try:
                rate = rates.send(step.holds)
            except StopIteration as end:
                bracket: Bracket = end.value
                return bracket

    async def _confirm(self, rate: float) -> float | None:
        """Of many tries one may hold by luck: only what holds again counts."""
        for turn in range(MAX_CONFIRMATIONS):
            step = await self._measure(rate, self._goal.seed + 1 + turn)
            if step.holds:
                return rate
            rate /= 1 + self._goal.tolerance
        return None

    async def _measure(self, rate: float, seed: int) -> Step:
        step = await measure(
            self._loop,
            rate,
            timing=self._goal.timing,
            objective_seconds=self._goal.objective_seconds,
            seed=seed,
        )
        self._steps.append(step)
        self._say(step)
        return step
