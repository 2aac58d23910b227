import pytest

from loadtest import attention_paths
from tests.native.kernels import MISSING


def test_the_table_has_a_row_for_every_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {
        "decoding": attention_paths.decoding(3, 10),
        "prompts": attention_paths.prompts(2, 5, 7),
    }
    monkeypatch.setattr(attention_paths, "STEPS", steps)
    monkeypatch.setattr(attention_paths, "REPEATS", 3)
    assert attention_paths.main([]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(steps)
    assert {row[1] != "-" for row in rows} == {MISSING is None}
    assert all(int(row[2].replace(",", "")) > 0 for row in rows)
