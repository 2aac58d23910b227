"""What a locust test does: one table of options, and the typed plan that they give.

Every option is a flag, or a variable LOADTEST_<NAME>; locust's own stay locust's.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loadtest.errors import LoadTestError
from loadtest.headlines import DEFAULT_FILE
from loadtest.limits import Limits
from loadtest.mixes import Mix
from loadtest.shapes import Schedule, Shape

PREFIX = "LOADTEST_"
DEFAULT_SECONDS = 60
DEFAULT_USERS = 16

T = TypeVar("T", int, float)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Option:
    """One flag; empty text means: not given."""

    flag: str
    default: str
    help: str

    @property
    def name(self) -> str:
        """As an attribute of the parsed options."""
        return self.flag.removeprefix("--").replace("-", "_")


OPTIONS = (
    Option("--mix", Mix.UNIFORM, f"how requests are spread over adapters: {', '.join(Mix)}"),
    Option("--models", "", "adapters to ask for, with commas (default: all that are served)"),
    Option("--broken-adapters", "", "adapters whose files are broken, with commas"),
    Option("--zipf-exponent", "1.0", "of --mix zipf"),
    Option("--headlines", str(DEFAULT_FILE), "JSONL file with `context`, or a headline a line"),
    Option("--seed", "0", "of order, mix and figures in the headlines; 0: another one every time"),
    Option("--max-tokens", "8", "new tokens of an answer"),
    Option("--think-seconds", "0", "mean pause of a user between requests"),
    Option("--timeout-seconds", "120", "silence after which a request has failed"),
    Option("--shape", Shape.RAMP, f"how the number of users goes: {', '.join(Shape)}"),
    Option("--max-requests", "100000", "the test ends after about so many"),
    Option("--allow-remote", "", "1: the server may be another machine"),
    Option("--output", "", "folder for samples.csv, figures.csv and summary.json"),
    Option("--max-first-token-p95-ms", "", "limit: p95 of the time to the first token"),
    Option("--max-request-p95-ms", "", "limit: p95 of whole requests"),
    Option("--max-error-share", "0", "limit: share of requests that may fail"),
    Option("--min-rps", "", "limit: good answers per second, at least"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of one test, typed."""

    mix: Mix
    models: tuple[str, ...]
    broken: tuple[str, ...]
    zipf_exponent: float
    headlines: Path
    seed: int
    max_tokens: int
    think_seconds: float
    timeout_seconds: float
    schedule: Schedule
    max_requests: int
    allow_remote: bool
    output: Path | None
    limits: Limits


def add_options(parser: argparse.ArgumentParser) -> None:
    """The table as flags; a variable of the environment takes the place of a default."""
    for option in OPTIONS:
        default = os.environ.get(PREFIX + option.name.upper(), option.default)
        parser.add_argument(option.flag, default=default, help=option.help)


def plan_of(options: Mapping[str, Any]) -> Plan:
    """Parsed options as a plan; locust's web form turns all of them to text. Raises LoadTestError.

    `num_users` and `run_time` (seconds) are locust's.
    """
    read = _Reader(options)
    return Plan(
        mix=read("mix", Mix),
        models=_names(read.text("models")),
        broken=_names(read.text("broken_adapters")),
        zipf_exponent=read("zipf_exponent", float),
        headlines=read("headlines", Path),
        seed=read("seed", int) or int.from_bytes(os.urandom(4)),
        max_tokens=read("max_tokens", _at_least(1)),
        think_seconds=read("think_seconds", _at_least(0.0)),
        timeout_seconds=read("timeout_seconds", _at_least(0.1)),
        schedule=Schedule(
            read("shape", Shape),
            read.optional("num_users", int) or DEFAULT_USERS,
            read.optional("run_time", float) or DEFAULT_SECONDS,
        ),
        max_requests=read("max_requests", _at_least(1)),
        allow_remote=read.text("allow_remote") not in ("", "0", "false"),
        output=read.optional("output", Path),
        limits=Limits(
            first_token_p95_ms=read.optional("max_first_token_p95_ms", float),
            request_p95_ms=read.optional("max_request_p95_ms", float),
            max_error_share=read.optional("max_error_share", float),
            min_requests_per_second=read.optional("min_rps", float),
        ),
    )


class _Reader:
    """Values of the options by name."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def __call__(self, name: str, kind: Callable[[str], V]) -> V:
        try:
            return kind(self.text(name))
        except ValueError as error:
            raise LoadTestError(f"--{name.replace('_', '-')}: {error}") from error

    def optional(self, name: str, kind: Callable[[str], V]) -> V | None:
        return self(name, kind) if self.text(name) else None

    def text(self, name: str) -> str:
        value = self._options.get(name)
        return "" if value is None else str(value).strip()


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _at_least(least: T) -> Callable[[str], T]:
    """Reads a number of the type of `least`, and not below it."""

    def read(text: str) -> T:
        number = type(least)(text)
        if not number >= least:
            raise ValueError(f"{text} is not at least {least}")
        return number

    return read
