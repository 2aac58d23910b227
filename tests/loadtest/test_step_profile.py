from pathlib import Path

import pytest

from loadtest import step_profile
from loadtest.step_profile import GROUPS, Ledger, Load
from tests.tiny_models import build


def test_time_counts_once_for_the_innermost_group(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 9.0])
    monkeypatch.setattr("loadtest.step_profile.time.thread_time", lambda: next(clock))
    ledger = Ledger()
    inner = ledger.timed("inner", lambda: None)
    ledger.timed("outer", inner)()
    assert ledger.seconds == {"outer": 1 + 5, "inner": 3}


def test_every_group_of_every_load_has_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_profile, "LOADS", (Load(2, 2, 3), Load(1, 1, 1)))
    monkeypatch.setattr(step_profile, "MAX_ADAPTERS", 5)
    base = build("llama", tmp_path / "tiny-llama")
    assert step_profile.main(["--model", str(base), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "| 2 clients, 2 new tokens: ms a request | base only | 4 adapters | 5 adapters |"
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line]
    assert [row[0] for row in rows[2:8]] == list(GROUPS)
    assert all(float(cell) > 0 for row in rows[2:8] for cell in row[1:] if row[0] != "adapters")
    assert rows[9][1] == "1.00 (1.00 to 1.00)"
