import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtest.peers.candidates import Candidate
from loadtest.peers.compare import Comparer
from loadtest.peers.fleet import Fleet, Target
from loadtest.peers.process import ServerFailedError
from loadtest.peers.prompts import PromptSource
from loadtest.peers.scenarios import Metric, Scenario, Side, Traffic

RECORDER = Path(__file__).with_name("recording_server.py")
CONTEXTS = [f"Instruction: Choose.\nInput: headline {i}\nAnswer: " for i in range(5)]
MODELS = ("a0", "a1", "a2", "a3", "a4")


def recorder(name: str, folder: Path) -> Candidate:
    record = str(folder / f"{name}.jsonl")
    return Candidate(
        name,
        lambda port: [sys.executable, str(RECORDER), str(port), record],
        base_name="the-base",
        slow=name == "slow",
    )


def requests(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def comparer(tmp_path: Path, said: list[str]) -> Iterator[Comparer]:
    candidates = {name: recorder(name, tmp_path) for name in ("finlora", "other", "slow")}
    with Fleet(candidates, tmp_path, said.append) as fleet:
        models = {"finlora": MODELS}
        yield Comparer(fleet, PromptSource(CONTEXTS), models, 2, 4, said.append)


def scenario(*sides: Side, **settings: Any) -> Scenario:
    sizes = {"clients": 2, "requests": 6, "rounds": 2} | settings
    return Scenario("a-key", "a title", sides, **sizes)


def test_sides_of_one_server_never_share_a_prompt(comparer: Comparer, tmp_path: Path) -> None:
    sides = Side("finlora"), Side("finlora", Traffic.BASE)
    outcome = comparer.outcome(scenario(*sides))
    assert outcome.errors == 0
    sent = requests(tmp_path, "finlora")
    # Two to warm up and two clients' worth for each side, then two rounds of 2 + 6 for each.
    assert len(sent) == 2 * (2 + 2) + 2 * 2 * (2 + 6)
    assert max(Counter(body["prompt"] for body in sent).values()) == 1
    assert Counter(body["model"] for body in sent) == {"the-base": 20, "a0": 10, "a1": 10}


def test_different_servers_get_the_same_prompts_in_turn(comparer: Comparer, tmp_path: Path) -> None:
    comparer.outcome(scenario(Side("finlora"), Side("other")))
    timed = [[body["prompt"] for body in requests(tmp_path, n)][4:] for n in ("finlora", "other")]
    assert sorted(timed[0]) == sorted(timed[1])
    assert len(set(timed[0])) == 2 * (2 + 6)


def test_the_order_of_the_sides_alternates(comparer: Comparer, said: list[str]) -> None:
    comparer.outcome(scenario(Side("finlora"), Side("other"), rounds=3))
    rounds = [line.split(": ")[1] for line in said if line.startswith("a-key")]
    first, second = "finlora, adapters mixed", "other, adapters mixed"
    assert rounds == [first, second, second, first, first, second]


def test_the_outcome_holds_every_figure(comparer: Comparer) -> None:
    outcome = comparer.outcome(scenario(Side("finlora"), Side("other"), metric=Metric.LATENCY))
    assert [each.compared for each in outcome.comparisons] == [
        "latency of finlora, adapters mixed / other, adapters mixed"
    ]
    assert [run["result"]["requests"] for run in outcome.record["runs"]] == [6, 6, 6, 6]
    assert outcome.rounds["other, adapters mixed"][0].hit_rate == 0.25
    assert "| 25% |" in outcome.text
    assert json.dumps(outcome.record)


def test_a_slow_server_gets_fewer_requests(comparer: Comparer, tmp_path: Path) -> None:
    outcome = comparer.outcome(scenario(Side("finlora"), Side("slow"), rounds=1))
    slow = outcome.rounds["slow, adapters mixed"]
    assert [result.requests for result in slow] == [4]


def test_zipf_traffic_asks_for_more_than_the_mixed_ones(comparer: Comparer, tmp_path: Path) -> None:
    many = scenario(Side("finlora", Traffic.MANY), requests=60, rounds=1)
    comparer.outcome(many)
    asked = Counter(body["model"] for body in requests(tmp_path, "finlora"))
    assert set(asked) == set(MODELS)
    assert asked["a0"] > asked["a4"]


@pytest.mark.usefixtures("proxied")
def test_what_a_server_refuses_is_told_in_its_words(comparer: Comparer) -> None:
    refusal = comparer.refusal(scenario(Side("finlora", Traffic.CHOICE), Side("finlora")))
    assert refusal is not None
    assert "unknown field: guided_choice" in refusal
    assert comparer.refusal(scenario(Side("finlora"))) is None


def kill(comparer: Comparer, name: str) -> Target:
    """End a server from outside, and return what it was."""
    target = comparer.fleet.get(name)
    os.kill(target.pid, signal.SIGKILL)
    # Over, but not yet noticed: its end is for the fleet to collect.
    os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
    return target


def test_a_server_that_ended_is_told_once_and_then_started_anew(comparer: Comparer) -> None:
    target = kill(comparer, "other")
    with pytest.raises(ServerFailedError, match=r"recording_server.py .* ended with code -9"):
        comparer.fleet.focus("other")
    comparer.fleet.focus("finlora")
    assert comparer.fleet.others_cpu_seconds("finlora") == 0
    assert comparer.fleet.focus("other") is not target


def test_another_scenario_begins_with_living_servers(comparer: Comparer) -> None:
    target = kill(comparer, "finlora")
    comparer.fleet.keep({"finlora", "other"})
    assert comparer.fleet.get("finlora") is not target


def mortal(comparer: Comparer, name: str, requests: int) -> Side:
    """A side whose server ends at that request of every life."""
    candidates = dict(comparer.fleet.candidates)
    candidates[name] = replace(candidates[name], environment={"END_AFTER_REQUESTS": str(requests)})
    comparer.fleet.candidates = candidates
    return Side(name)


# While it warms up with two requests and two clients' worth, in the first round, in the second.
@pytest.mark.parametrize("requests", [3, 8, 16])
def test_a_peer_that_ends_leaves_the_comparison_of_the_others(
    requests: int, comparer: Comparer, said: list[str]
) -> None:
    sides = Side("finlora"), mortal(comparer, "other", requests), Side("slow")
    outcome = comparer.outcome(scenario(*sides))
    assert list(outcome.rounds) == ["finlora, adapters mixed", "slow, adapters mixed"]
    assert [len(results) for results in outcome.rounds.values()] == [2, 2]
    assert [each.compared for each in outcome.comparisons] == [
        "speed of finlora, adapters mixed / slow, adapters mixed"
    ]
    assert "ended with code 3" in outcome.failures["other"]
    assert outcome.record["failures"] == outcome.failures
    assert len([line for line in said if "a-key: without other, adapters mixed: " in line]) == 1


def test_a_peer_that_does_not_start_leaves_the_comparison_of_the_others(
    comparer: Comparer, said: list[str]
) -> None:
    broken = Candidate("broken", lambda _: [sys.executable, "-c", "1 / 0"], base_name="b")
    comparer.fleet.candidates = {**comparer.fleet.candidates, "broken": broken}
    outcome = comparer.outcome(scenario(Side("finlora"), Side("broken"), Side("other")))
    assert list(outcome.rounds) == ["finlora, adapters mixed", "other, adapters mixed"]
    assert "ZeroDivisionError" in outcome.failures["broken"]


def test_a_comparison_needs_its_own_side_and_one_other(comparer: Comparer) -> None:
    with pytest.raises(ServerFailedError, match="ended with code 3"):
        comparer.outcome(scenario(Side("finlora"), mortal(comparer, "other", 8)))
    own = mortal(comparer, "slow", 8)
    with pytest.raises(ServerFailedError, match="ended with code 3"):
        comparer.outcome(scenario(own, Side("finlora"), Side("other")))


def test_a_server_that_ends_refuses_nothing(comparer: Comparer) -> None:
    os.kill(comparer.fleet.get("finlora").pid, signal.SIGKILL)
    with pytest.raises(ServerFailedError):
        comparer.refusal(scenario(Side("finlora", Traffic.CHOICE), Side("finlora")))


def test_only_the_measured_server_is_awake(comparer: Comparer) -> None:
    fleet = comparer.fleet
    processes = {name: psutil.Process(fleet.focus(name).pid) for name in ("finlora", "other")}
    assert processes["finlora"].status() == psutil.STATUS_STOPPED
    fleet.focus("finlora")
    assert processes["other"].status() == psutil.STATUS_STOPPED
    assert processes["finlora"].status() != psutil.STATUS_STOPPED
    fleet.keep(set())
    _, alive = psutil.wait_procs(processes.values(), timeout=10)
    assert not alive


def test_a_fleet_ends_what_is_not_kept(comparer: Comparer, tmp_path: Path) -> None:
    fleet = comparer.fleet
    first = fleet.get("finlora")
    assert fleet.get("finlora") is first
    fleet.get("other")
    assert fleet.resident_bytes("other") > 1_000_000
    assert fleet.others_cpu_seconds("other") > 0
    fleet.keep({"other"})
    assert fleet.others_cpu_seconds("other") == 0
    assert fleet.get("finlora") is not first


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    broken = Candidate("broken", lambda _: [sys.executable, "-c", "1 / 0"], base_name="b")
    with (
        Fleet({"broken": broken}, tmp_path, lambda _: None) as fleet,
        pytest.raises(ServerFailedError, match="ZeroDivisionError"),
    ):
        fleet.get("broken")
