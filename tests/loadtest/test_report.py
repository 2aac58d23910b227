from pathlib import Path

import pytest

from loadtest.peers.load import Result
from loadtest.peers.report import picture, ratio, table


def result(requests_per_second: float, errors: int = 0) -> Result:
    first = "status 500" if errors else None
    return Result(requests_per_second, 0.1, 0.2, 0.3, errors, first)


def test_the_ratio_is_paired_by_round() -> None:
    """The machine halves its speed in round two: the ratio does not notice, the medians would."""
    found = ratio([80.0, 40.0, 80.0], [10.0, 5.0, 10.0])
    assert (found.value, found.low, found.high) == (8.0, 8.0, 8.0)


def test_the_interval_spans_the_rounds_and_holds_the_median() -> None:
    found = ratio([80.0, 90.0, 100.0], [10.0, 10.0, 10.0])
    assert found.value == 9.0
    assert 8.0 <= found.low < 9.0 < found.high <= 10.0


def test_the_table_shows_medians_ratios_and_errors() -> None:
    rounds = {
        "finlora": [result(40.0), result(44.0), result(42.0)],
        "peft": [result(4.0), result(4.4, errors=2), result(4.2)],
    }
    assert table(rounds).splitlines()[2:] == [
        "| finlora | 42.0 (40.0 to 44.0) | 100 ms | 200 ms | 0 |  |",
        "| peft | 4.2 (4.0 to 4.4) | 100 ms | 200 ms | 2 | 10.0 (10.0 to 10.0) |",
    ]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    file = tmp_path / "requests.png"
    picture({"finlora": [result(40.0)], "peft": [result(4.0)]}, "four adapters", file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_one_server_alone_needs_no_ratio() -> None:
    assert table({"finlora": [result(40.0)]}).splitlines()[-1].endswith("| 0 |  |")


def test_rounds_must_pair_up() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        ratio([1.0, 2.0, 3.0], [1.0, 2.0])
