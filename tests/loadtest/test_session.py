"""A session against a real server, without locust."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest import bodies
from loadtest.client_cost import ClientCost
from loadtest.errors import LoadTestError
from loadtest.mixes import Mix
from loadtest.report import table, write
from loadtest.samples import Kind
from loadtest.server_api import ServerAPI
from loadtest.session import Session
from tests.api.live import LiveServer
from tests.loadtest.test_plan import plan


def session(server: LiveServer, *flags: str, **changes: Any) -> Session:
    made = plan("--broken-adapters", "broken", "--seed", "5", *flags)
    return Session(replace(made, **changes), ServerAPI(server.url))


def post(server: LiveServer, body: dict[str, Any]) -> None:
    sent = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/completions", sent, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()


def test_the_servers_own_counts_are_those_of_the_test_alone(tiny_server: LiveServer) -> None:
    made = session(tiny_server)
    assert sorted(made.models) == ["news", "tweets"]
    ask, headline = made.next_work()
    post(tiny_server, bodies.completion(ask.model, headline, 3))
    made.begin()
    for _ in range(2):
        post(tiny_server, bodies.completion(ask.model, headline, 3))
        made.note(Kind.REQUEST, "completions", 10.0, 1, None)
    report = made.report()
    assert report.server is not None
    assert report.server.output_tokens == 6
    # The very same prompt: all but its last token was there.
    assert report.server.hit_rate == pytest.approx(1, abs=0.1)
    assert (report.totals.requests, report.missed, report.errors) == (2, [], {})


def test_a_report_is_a_table_and_json_without_nan(tiny_server: LiveServer, tmp_path: Path) -> None:
    made = session(tiny_server)
    made.note(Kind.REQUEST, "completions", 12.5, 1, None)
    made.note(Kind.REQUEST, "classify", 1.0, 1, "503 overloaded")
    busy = ClientCost(cpu_seconds=9.0, wall_seconds=10.0, num_cpus=2)
    report = replace(made.report(), client=busy)
    shown = table(report)
    assert "failed 1 times: 503 overloaded" in shown
    assert "LIMIT MISSED: 50.00% of the requests failed" in shown
    assert "client: 0.90 cores, 45.0% of the 2" in shown
    assert "faster without it" in shown
    write(report, made.recorder, tmp_path)
    record = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    (row,) = [row for row in record["rows"] if row["name"] == "classify"]
    assert row["p50_ms"] is None
    assert record["client"]["machine_share"] == 0.45
    assert record["machine"]["python"]


def test_a_server_that_is_gone_at_the_end_costs_its_own_counts_alone(
    tiny_server: LiveServer, tmp_path: Path
) -> None:
    made = session(tiny_server)
    made.note(Kind.REQUEST, "completions", 12.5, 1, None)
    made.note(Kind.REQUEST, "completions", 1.0, 1, "ConnectionRefusedError")
    made.server = ServerAPI("http://127.0.0.1:1")
    report = made.report()
    shown = table(report)
    assert "THE SERVER WAS GONE at the end: no server answers at http://127.0.0.1:1" in shown
    assert "failed 1 times: ConnectionRefusedError" in shown
    assert "LIMIT MISSED: 50.00%" in shown
    write(report, made.recorder, tmp_path)
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["server"] is None
    assert "no server answers" in record["server_gone"]
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 2  # the good answer


def test_no_limit_is_told_as_held_without_a_server(tiny_server: LiveServer) -> None:
    made = session(tiny_server, "--max-error-share", "1")
    made.server = ServerAPI("http://127.0.0.1:1")
    assert "all limits held" not in table(made.report())


def test_a_test_ends_after_its_requests_or_its_time(tiny_server: LiveServer) -> None:
    made = session(tiny_server, "--max-requests", "2", "--shape", "steady")
    assert made.users_now() == made.plan.schedule.users
    made.note(Kind.REQUEST, "completions", 1.0, 1, None)
    made.note(Kind.FIRST_TOKEN, "completions", 1.0, 1, None)
    assert made.users_now() is not None
    made.note(Kind.REFUSAL, "unknown adapter", 1.0, 1, None)
    assert made.users_now() is None
    other = session(tiny_server)
    assert other.users_now() is not None
    other.end()
    assert other.users_now() is None


def test_what_makes_no_sense_is_said_before_the_load(tiny_server: LiveServer) -> None:
    with pytest.raises(LoadTestError, match="2 adapters, 4 slots"):
        session(tiny_server, mix=Mix.SWAP_STORM)
    with pytest.raises(LoadTestError, match="no model but broken ones"):
        session(tiny_server, broken=("news", "tweets", "broken"))
    with pytest.raises(LoadTestError, match="cannot read headlines"):
        session(tiny_server, "--headlines", "no/such/file")


def test_routes_and_absent_servers_are_told_apart(tiny_server: LiveServer) -> None:
    api = ServerAPI(tiny_server.url)
    assert api.has("/v1/completions")
    assert not api.has("/v1/no_such_route")
    tiny_server.wait_until_idle()
    with pytest.raises(LoadTestError, match="no server answers"):
        ServerAPI("http://127.0.0.1:1").scrape()
