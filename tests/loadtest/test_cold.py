import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from loadtest.peers.cold import ColdRounds, Phase, load_times, run_phase
from loadtest.peers.load import Load
from loadtest.peers.process import free_port, serving
from loadtest.peers.prompts import PromptSource

RECORDER = Path(__file__).with_name("recording_server.py")


@pytest.mark.usefixtures("proxied")
def test_each_cold_adapter_is_asked_once_while_the_others_go_round(tmp_path: Path) -> None:
    port, record = free_port(), tmp_path / "requests.jsonl"
    command = [sys.executable, str(RECORDER), str(port), str(record)]
    source = PromptSource(["Input: shares rose\nAnswer: ", "Input: shares fell\nAnswer: "])
    load = Load(models=("a0", "a1"), clients=2)
    with serving(command, port=port, ready_path="/health", log=tmp_path / "log") as server:
        address = f"{server.address}/v1"
        phase = asyncio.run(run_phase(address, load, ["c1", "c2", "c3"], source, 0.02))
        times = load_times(address)
    bodies = [json.loads(line) for line in record.read_text().splitlines()]
    asked = Counter(body["model"] for body in bodies)
    assert (asked["c1"], asked["c2"], asked["c3"]) == (1, 1, 1)
    assert len(phase.probes) == 3
    assert len(phase.others) == asked["a0"] + asked["a1"] >= 2
    assert not phase.errors
    assert max(Counter(body["prompt"] for body in bodies).values()) == 1
    assert times == {"ram_count": 2.0, "ram_sum": 0.5}


def test_percentiles_are_taken_over_all_rounds() -> None:
    calm, busy = (0.01,) * 99 + (0.02,), (0.01,) * 98 + (0.06, 0.06)
    found = ColdRounds(
        cold=[Phase((0.5,), busy, ()), Phase((0.7,), busy, ("status 500",))],
        warm=[Phase((0.1,), calm, ()), Phase((0.3,), calm, ())],
    )
    ratio = found.others_ratio(0.99)
    assert ratio is not None
    assert ratio.value == pytest.approx(6.0)
    assert found.probe_seconds(found.cold, 0.99) == 0.7
    assert found.probe_seconds(found.warm, 0.5) == 0.1
    assert found.errors == ["status 500"]


def test_rounds_with_errors_make_no_ratio() -> None:
    good, torn = Phase((0.1,), (0.02,) * 9, ()), Phase((), (0.5,) * 9, ("refused",))
    found = ColdRounds(cold=[good, torn, good], warm=[good, good, torn])
    ratio = found.others_ratio(0.99)
    assert ratio is not None
    assert (ratio.value, found.num_sound) == (1.0, 1)
    assert ColdRounds(cold=[torn], warm=[good]).others_ratio(0.99) is None
