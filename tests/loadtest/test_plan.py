import argparse
from typing import Any

import pytest

from loadtest.errors import LoadTestError
from loadtest.mixes import Mix
from loadtest.plan import DEFAULT_SECONDS, DEFAULT_USERS, Plan, add_options, plan_of
from loadtest.shapes import Shape


def plan(*flags: str, **others: Any) -> Plan:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return plan_of(vars(parser.parse_args(flags)) | others)


def test_without_options_there_are_bounds_and_no_error_is_allowed() -> None:
    made = plan()
    assert (made.schedule.users, made.schedule.seconds) == (DEFAULT_USERS, DEFAULT_SECONDS)
    assert made.limits.max_error_share == 0
    assert not made.allow_remote
    assert made.max_requests > 0
    assert made.seed != plan().seed  # another part of the prompts every time


def test_flags_become_typed() -> None:
    flags = "--mix zipf --shape soak --models a,b --seed 7 --max-first-token-p95-ms 250 --min-rps 3"
    made = plan(*flags.split(), "--allow-remote", "1", num_users=5, run_time=90)
    assert (made.mix, made.models, made.seed) == (Mix.ZIPF, ("a", "b"), 7)
    assert made.schedule.shape is Shape.SOAK
    assert (made.schedule.users, made.schedule.seconds) == (5, 90)
    assert made.limits.first_token_p95_ms == 250
    assert made.limits.min_requests_per_second == 3
    assert made.allow_remote


def test_a_variable_takes_the_place_of_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADTEST_MAX_ERROR_SHARE", "0.05")
    monkeypatch.setenv("LOADTEST_MIX", "zipf")
    assert plan().limits.max_error_share == 0.05
    assert plan("--mix", "identical").mix is Mix.IDENTICAL


def test_what_a_web_form_leaves_empty_is_not_given() -> None:
    made = plan(max_error_share="", output="", min_rps=" ", num_users="3", run_time=None)
    assert made.limits.max_error_share is None
    assert made.limits.min_requests_per_second is None
    assert made.output is None
    assert made.schedule.users == 3


@pytest.mark.parametrize(
    "flags",
    [
        ("--mix", "zip"),
        ("--shape", "cliff"),
        ("--max-tokens", "0"),
        ("--max-tokens", "many"),
        ("--think-seconds", "-1"),
        ("--timeout-seconds", "nan"),
        ("--min-rps", "fast"),
    ],
)
def test_a_wrong_value_is_named_by_its_flag(flags: tuple[str, str]) -> None:
    with pytest.raises(LoadTestError, match=flags[0]):
        plan(*flags)
