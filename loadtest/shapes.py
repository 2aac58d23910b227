"""How many users there are at each moment of a test. Pure: the locustfile asks once a second."""

import math
from dataclasses import dataclass
from enum import StrEnum

from loadtest.errors import LoadTestError

MAX_USERS = 2000
MAX_SECONDS = 24 * 3600
RAMP_STEPS = 8
# Soak: the users come during this share of the time, then stay.
SOAK_RAMP = 0.05
# Spike: this share of the users, all of them between the two moments, then the share again.
SPIKE_BASE = 0.2
SPIKE_FROM, SPIKE_TO = 0.4, 0.6


class Shape(StrEnum):
    """How the load goes over time."""

    STEADY = "steady"
    RAMP = "ramp"  # in equal steps from few to all
    SPIKE = "spike"  # few, suddenly all, few again
    SOAK = "soak"  # all for a long time


@dataclass(frozen=True, slots=True)
class Schedule:
    """A shape of at most `users` users over `seconds`. Raises LoadTestError out of bounds."""

    shape: Shape
    users: int
    seconds: float

    def __post_init__(self) -> None:
        if not 1 <= self.users <= MAX_USERS:
            raise LoadTestError(f"{self.users} users: from 1 to {MAX_USERS} are possible")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise LoadTestError(f"{self.seconds} seconds: up to {MAX_SECONDS} are possible")

    def users_at(self, elapsed: float) -> int | None:
        """The number of users `elapsed` seconds after the beginning; None: it is over."""
        share = max(0.0, elapsed) / self.seconds
        if share >= 1:
            return None
        return max(1, math.ceil(self.users * _level(self.shape, share)))


def _level(shape: Shape, share: float) -> float:
    match shape:
        case Shape.RAMP:
            return (math.floor(share * RAMP_STEPS) + 1) / RAMP_STEPS
        case Shape.SPIKE:
            return 1.0 if SPIKE_FROM <= share < SPIKE_TO else SPIKE_BASE
        case Shape.SOAK:
            return min(1.0, share / SOAK_RAMP)
    return 1.0
