import pytest

from loadtest import small_operations
from tests.native.kernels import needs_kernels


@needs_kernels
def test_prints_a_row_for_every_type_and_number_of_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(small_operations, "NUM_ROWS", (1, 3))
    monkeypatch.setattr(small_operations, "REPEATS", 3)
    assert small_operations.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" float32 ", " 1 "],
        [" float32 ", " 3 "],
        [" bfloat16 ", " 1 "],
        [" bfloat16 ", " 3 "],
    ]
    assert all(len(line.split("|")) == 8 for line in lines)
