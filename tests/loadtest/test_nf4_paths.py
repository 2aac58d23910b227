import pytest

from loadtest import nf4_paths
from tests.native.kernels import AVX512_MISSING, needs_kernels


@needs_kernels
@pytest.mark.parametrize("kind", ["bfloat16_ways", "float32_ways"])
def test_the_table_has_a_row_for_every_number_of_rows(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "bfloat16_ways" and AVX512_MISSING:
        pytest.skip(f"compiled kernels: {AVX512_MISSING}")
    monkeypatch.setattr(nf4_paths, "ways", getattr(nf4_paths, kind))
    monkeypatch.setattr(nf4_paths, "SHAPES", ((64, 128), (32, 64)))
    monkeypatch.setattr(nf4_paths, "NUM_BLOCKS", 2)
    monkeypatch.setattr(nf4_paths, "NUM_ROWS", (1, 8))
    assert nf4_paths.main([]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.count("ms") == 3
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [row[0] for row in cells] == ["1", "8"]
    assert all(float(cell) >= 0 for row in cells for cell in row[1:])
    assert all(len(row) == 7 for row in cells)
