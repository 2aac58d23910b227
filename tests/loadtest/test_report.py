import math
from dataclasses import replace
from pathlib import Path

import pytest

from finlora.bench.statistics import Ratio
from loadtest.peers.load import Result
from loadtest.peers.report import (
    Comparison,
    Outcome,
    number,
    picture,
    ratios,
    sound_rounds,
    summary,
    table,
)
from loadtest.peers.scenarios import Metric


def result(requests_per_second: float, errors: int = 0, cached: int | None = 25) -> Result:
    first = "status 500" if errors else None
    return Result(requests_per_second, 0.1, 0.2, 0.3, errors, first, 10, 100, cached)


ROUNDS = {
    "finlora": [result(40.0), result(44.0), result(42.0)],
    "peft": [result(4.0, cached=None), result(4.4, 2, None), result(4.2, cached=None)],
}


def test_the_table_shows_medians_hits_ratios_and_errors() -> None:
    assert table(ROUNDS).splitlines()[2:] == [
        "| finlora | 42.0 (40.0 to 44.0) | 100 ms | 200 ms | 10.0 | 25% | 0 |  |",
        "| peft | 4.2 (4.0 to 4.4) | 100 ms | 200 ms | 10.0 | not told | 2 | 10.0 (10.0 to 10.0) |",
    ]


def test_rounds_with_errors_make_no_ratio() -> None:
    torn = [result(40.0), replace(result(0.0, 10), p50_seconds=math.nan), result(42.0, 1)]
    rounds = {"finlora": [result(50.0), result(400.0), result(400.0)], "peft": torn}
    for metric, value in ((Metric.THROUGHPUT, 1.25), (Metric.LATENCY, 1.0)):
        assert ratios(rounds, metric)["peft"].value == value
    assert len(sound_rounds(rounds["finlora"], torn)) == 1


def test_without_one_sound_round_there_is_no_ratio(tmp_path: Path) -> None:
    failed = [replace(result(0.0, 10), p50_seconds=math.nan, p95_seconds=math.nan)] * 3
    rounds = {"finlora": ROUNDS["finlora"], "peft": failed}
    assert ratios(rounds) == {}
    row = "| peft | 0.0 (0.0 to 0.0) | none | none | 10.0 | 25% | 30 |  |"
    assert table(rounds, Metric.LATENCY).splitlines()[-1] == row
    picture([Outcome("k", "t", "", [], {}, 30, rounds, Metric.LATENCY)], tmp_path / "picture.png")


def test_latencies_are_compared_as_latencies() -> None:
    assert ratios(ROUNDS, Metric.LATENCY)["peft"].value == 1.0
    assert ratios(ROUNDS)["peft"].value == pytest.approx(10.0)


def test_one_side_alone_needs_no_ratio() -> None:
    assert table({"finlora": [result(40.0)]}).splitlines()[-1].endswith("| 0 |  |")


def test_the_summary_has_a_row_for_every_ratio() -> None:
    comparisons = [Comparison("mixed-3", "speed of a / b", Ratio(12.34, 11.0, 13.0), 3)]
    assert summary(comparisons).splitlines()[-1] == (
        "| mixed-3 | speed of a / b | 12.3 | 11.0 to 13.0 | 3 |"
    )


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.98765, "0.988"), (1.0, "1.000"), (1.234, "1.23"), (35.67, "35.7")]
)
def test_ratios_near_one_keep_their_digits(ratio: float, shown: str) -> None:
    assert number(ratio) == shown


def test_the_picture_is_a_png_with_a_panel_for_each_scenario(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 3):
        file = tmp_path / f"{count}.png"
        picture([Outcome("k", "title", "", [], {}, 0, ROUNDS)] * count, file)
        assert file.read_bytes().startswith(b"\x89PNG")
        sizes.append(int.from_bytes(file.read_bytes()[20:24]))
    assert sizes[1] > 2 * sizes[0]
