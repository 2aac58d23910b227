import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import LoadTestError
from loadtest.shapes import MAX_USERS, Schedule, Shape

schedules = st.builds(
    Schedule, st.sampled_from(Shape), st.integers(1, MAX_USERS), st.floats(1, 3600)
)


def levels(shape: Shape, users: int = 40) -> list[int | None]:
    schedule = Schedule(shape, users, 100)
    return [schedule.users_at(second) for second in range(0, 101, 5)]


@settings(deadline=None)
@given(schedules, st.floats(-10, 5000))
def test_there_are_users_until_the_time_is_over(schedule: Schedule, elapsed: float) -> None:
    users = schedule.users_at(elapsed)
    assert (users is None) == (elapsed >= schedule.seconds)
    assert users is None or 1 <= users <= schedule.users


@settings(deadline=None)
@given(schedules)
def test_every_shape_reaches_all_its_users(schedule: Schedule) -> None:
    moments = (schedule.seconds * step / 200 for step in range(200))
    assert max(schedule.users_at(moment) or 0 for moment in moments) == schedule.users


def test_steady_has_all_from_the_beginning() -> None:
    assert levels(Shape.STEADY) == [40] * 20 + [None]


def test_a_ramp_only_rises_in_equal_steps() -> None:
    ramp = [users for users in levels(Shape.RAMP) if users is not None]
    assert ramp == sorted(ramp)
    assert sorted(set(ramp)) == [5, 10, 15, 20, 25, 30, 35, 40]


def test_a_spike_is_between_two_calm_times() -> None:
    assert levels(Shape.SPIKE) == [8] * 8 + [40] * 4 + [8] * 8 + [None]


def test_a_soak_stays_where_it_has_come_to() -> None:
    assert levels(Shape.SOAK) == [1] + [40] * 19 + [None]


@pytest.mark.parametrize(
    ("users", "seconds"), [(0, 10), (MAX_USERS + 1, 10), (1, 0), (1, 10**6), (1, float("nan"))]
)
def test_a_load_is_bounded(users: int, seconds: float) -> None:
    with pytest.raises(LoadTestError):
        Schedule(Shape.STEADY, users, seconds)
