import pytest

from loadtest import lora_paths


def test_the_table_has_a_row_for_every_combination(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lora_paths, "NUM_ROWS", (8,))
    monkeypatch.setattr(lora_paths, "NUM_ADAPTERS", (1, 4))
    monkeypatch.setattr(lora_paths, "RANKS", (4, 8))
    monkeypatch.setattr(lora_paths, "REPEATS", 3)
    assert lora_paths.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1:3] for row in rows] == [["1", "4"], ["1", "8"], ["4", "4"], ["4", "8"]]
    assert all(int(row[3]) > 0 and int(row[4].rstrip(" |")) > 0 for row in rows)
