import pytest

from loadtest import lora_paths
from tests.native.kernels import MISSING


def test_the_table_has_a_row_for_every_combination(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lora_paths, "GROUPS", lora_paths.GROUPS[::2])
    monkeypatch.setattr(lora_paths, "NUM_ROWS", (8,))
    monkeypatch.setattr(lora_paths, "NUM_ADAPTERS", (1, 4))
    monkeypatch.setattr(lora_paths, "RANKS", (4, 8))
    monkeypatch.setattr(lora_paths, "REPEATS", 3)
    assert lora_paths.main([]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    combinations = [["1", "4"], ["1", "8"], ["4", "4"], ["4", "8"]]
    assert [row[0] for row in rows] == ["| q, k, v"] * 4 + ["| down"] * 4
    assert [row[2:4] for row in rows] == combinations * 2
    assert all(int(row[5]) > 0 and int(row[6].rstrip(" |")) > 0 for row in rows)
    assert {row[4].isdigit() for row in rows} == {MISSING is None}
