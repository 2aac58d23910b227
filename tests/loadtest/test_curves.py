import json
from pathlib import Path

import pytest

from loadtest.curve_report import by_curve
from loadtest.curves import Point, main
from tests.tiny_models import build

SMALL = ["--batch-sizes", "1,3", "--prompt-tokens", "8,16,511", "--adapters", "1,3"]
SMALL += ["--ranks", "4,8", "--requests", "6", "--clients", "2", "--prefill-tokens", "32"]
SMALL += ["--num-steps", "3", "--rounds", "1"]


def test_every_curve_has_its_points_beside_their_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build("llama", tmp_path / "tiny-llama")
    output = tmp_path / "curves"
    folders = ["--registries", str(tmp_path / "registries"), "--output", str(output)]
    assert main(["--model", str(base), *SMALL, *folders]) == 0
    points = json.loads((output / "curves.json").read_text())["points"]
    assert [(point["curve"], point["x"]) for point in points] == [
        ("batch size", 1),
        ("batch size", 3),
        ("prompt length", 8),
        ("prompt length", 16),
        ("prompt length", 511),
        ("adapters", 1),
        ("adapters", 3),
        ("rank", 4),
        ("rank", 8),
        ("model size, prefill", pytest.approx(0.098304)),
        ("model size, decode", pytest.approx(0.098304)),
    ]
    assert all(point["per_second"] > 0 and point["bound_per_second"] > 0 for point in points)
    table = (output / "curves.md").read_text().splitlines()
    assert len(table) == 2 + len(points)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("of the bound") == len(points)


def test_points_of_curves_that_take_turns_stay_together() -> None:
    points = [Point(curve, x, "tiny", 1.0, 2.0) for x in (1, 2) for curve in ("prefill", "decode")]
    by_name = by_curve(points)
    assert list(by_name) == ["prefill", "decode"]
    assert [[point.x for point in curve] for curve in by_name.values()] == [[1, 2], [1, 2]]


def test_an_unknown_curve_is_a_usage_error() -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--curves", "rank,colour"])
