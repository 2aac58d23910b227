from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.capacity.search import Bracket, search

LOWEST, HIGHEST = 0.25, 512.0
rates = st.floats(0.01, 2000)


def run(start: float, capacity: float, tolerance: float) -> tuple[Bracket, list[float]]:
    """Search a server that holds whatever is not above its capacity."""
    tried: list[float] = []
    trying = search(start, tolerance=tolerance, lowest=LOWEST, highest=HIGHEST)
    rate = next(trying)
    while True:
        tried.append(rate)
        try:
            rate = trying.send(rate <= capacity)
        except StopIteration as end:
            bracket: Bracket = end.value
            return bracket, tried


@settings(deadline=None)
@given(rates, rates, st.floats(0.01, 1))
def test_the_capacity_lies_in_the_bracket(start: float, capacity: float, tolerance: float) -> None:
    bracket, tried = run(start, capacity, tolerance)
    assert bracket.holds is None or bracket.holds <= capacity
    assert bracket.fails is None or bracket.fails > capacity
    assert (bracket.holds is None) == (capacity < LOWEST)
    assert (bracket.fails is None) == (capacity >= HIGHEST)
    if bracket.holds is not None and bracket.fails is not None:
        assert bracket.fails <= bracket.holds * (1 + tolerance) * (1 + 1e-9)
    assert all(LOWEST <= rate <= HIGHEST for rate in tried)
    assert len(set(tried)) == len(tried)


@settings(deadline=None)
@given(rates, rates)
def test_a_search_is_short(start: float, capacity: float) -> None:
    """11 doublings span the bounds; three halvings of a factor of 2 come to less than 10 %."""
    _, tried = run(start, capacity, tolerance=0.1)
    assert len(tried) <= 12 + 3


def test_doubling_then_bisection() -> None:
    bracket, tried = run(2, capacity=11, tolerance=0.2)
    assert tried[:4] == [2, 4, 8, 16]
    assert tried[4:] == [pytest.approx(128**0.5), pytest.approx((8 * 128**0.5) ** 0.5)]
    assert bracket == Bracket(holds=tried[5], fails=tried[4])


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=20, max_size=20), rates)
def test_a_server_that_changes_its_mind_ends_the_search_too(
    verdicts: list[bool], start: float
) -> None:
    trying = search(start, tolerance=0.1, lowest=LOWEST, highest=HIGHEST)
    next(trying)
    bracket = _end(trying, verdicts)
    assert bracket.holds is None or bracket.fails is None or bracket.holds < bracket.fails


def _end(trying: Generator[float, bool, Bracket], verdicts: list[bool]) -> Bracket:
    try:
        for verdict in verdicts:
            trying.send(verdict)
    except StopIteration as end:
        bracket: Bracket = end.value
        return bracket
    raise AssertionError("the search has no end")
