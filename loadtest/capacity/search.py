"""The highest rate that holds: doubling until one does not, then bisection."""

import math
from collections.abc import Generator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bracket:
    """The highest rate seen to hold and the lowest seen to fail; None: none was."""

    holds: float | None
    fails: float | None


def search(
    start: float, *, tolerance: float, lowest: float, highest: float
) -> Generator[float, bool, Bracket]:
    """Yields rates to try; send whether each held. Ends with rates at most 1 + tolerance apart.

    Rates are compared by their ratio, so the middle is the geometric one. Not tried are rates below
    `lowest` and above `highest`.
    """
    bracket = yield from _first_bracket(start, lowest, highest)
    holds, fails = bracket.holds, bracket.fails
    if holds is None or fails is None:
        return bracket
    while fails > holds * (1 + tolerance):
        middle = math.sqrt(holds * fails)
        if (yield middle):
            holds = middle
        else:
            fails = middle
    return Bracket(holds, fails)


def _first_bracket(start: float, lowest: float, highest: float) -> Generator[float, bool, Bracket]:
    rate = min(max(start, lowest), highest)
    if (yield rate):
        while rate < highest:
            held, rate = rate, min(2 * rate, highest)
            if not (yield rate):
                return Bracket(held, rate)
        return Bracket(rate, None)
    while rate > lowest:
        failed, rate = rate, max(rate / 2, lowest)
        if (yield rate):
            return Bracket(rate, failed)
    return Bracket(None, rate)
