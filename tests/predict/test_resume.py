"""Runs that are cut off, and runs that go on."""

import csv
import gc
import tracemalloc
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from finlora.errors import ConfigError, FinLoRAError
from finlora.offline.results import Classification, Text
from finlora.predict import run
from finlora.predict.columns import AddedColumns
from finlora.predict.destination import Destination
from finlora.predict.formats import Format
from finlora.predict.progress import Lines
from finlora.predict.rows import Row
from finlora.predict.run import Run
from finlora.predict.sources import open_source
from tests.predict.conftest import Predict

LABELS = ("even", "odd")


class Counting:
    """Labels a text by the number it ends in, and is cut off after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.labels = LABELS
        self.identity: dict[str, Any] = {"labels": list(LABELS)}
        self.num_labelled = 0
        self._stop_after = stop_after

    def each(self, texts: Iterable[Text]) -> Generator[Classification | FinLoRAError]:
        for text in texts:
            if self.num_labelled == self._stop_after:
                raise KeyboardInterrupt
            self.num_labelled += 1
            if isinstance(text, FinLoRAError):
                yield text
            else:
                odd = int(text.rsplit(" ", 1)[1]) % 2
                yield Classification(LABELS[odd], {"even": 1.0 - odd, "odd": float(odd)})


def label(source_path: Path, output_path: Path, labeller: Counting, prefix: str = "") -> None:
    added = AddedColumns(LABELS, prefix)
    kinds = {".csv": Format.CSV, ".jsonl": Format.JSONL, ".parquet": Format.PARQUET}
    kind = kinds[output_path.suffix]
    destination = Destination(output_path, kind, source_path, Format.CSV)
    destination.prepare()
    with open_source(source_path, Format.CSV) as source:
        output = destination.open(source, "text", added, labeller.identity)
        with closing(output):
            Run(source, "text", added, output, Lines()).label_all(labeller)


def write_input(path: Path, num_rows: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.write("text,more\n")
        file.writelines(f"row {i},{'' if i % 7 else 'x'}\n" for i in range(num_rows))
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_cut_off_and_gone_on_is_the_same_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ROWS_IN_A_CHUNK", 10)
    source = write_input(tmp_path / "in.csv", 100)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    label(source, whole, Counting())
    again = Counting()
    for labeller in (Counting(stop_after=37), Counting(stop_after=20), again):
        try:
            label(source, cut, labeller)
        except KeyboardInterrupt:
            assert (tmp_path / f"cut.{suffix}.progress").exists()
            if suffix != "parquet":  # what was written after the last mark
                with cut.open("ab") as file:
                    file.write(b'half a r"')
    assert again.num_labelled == 100 - 37 - 20
    if suffix == "parquet":
        from pyarrow import parquet

        assert parquet.read_table(cut).equals(parquet.read_table(whole))
    else:
        assert cut.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([source, whole, cut])


def test_another_task_does_not_go_on(tmp_path: Path) -> None:
    source, output = write_input(tmp_path / "in.csv", 20), tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        label(source, output, Counting(stop_after=5))
    before = output.read_bytes()
    with pytest.raises(ConfigError, match="begun with another prefix; --overwrite"):
        label(source, output, Counting(), prefix="p_")
    write_input(source, 21)
    with pytest.raises(ConfigError, match="begun with another input"):
        label(source, output, Counting())
    assert output.read_bytes() == before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_an_unfinished_output_that_lost_something_does_not_go_on(
    suffix: str, is_gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ROWS_IN_A_CHUNK", 5)
    source, output = write_input(tmp_path / "in.csv", 20), tmp_path / f"out.{suffix}"
    with pytest.raises(KeyboardInterrupt):
        label(source, output, Counting(stop_after=10))
    parts = tmp_path / f"out.{suffix}.parts"
    kept = parts / "00000000.parquet" if suffix == "parquet" else output
    content = kept.read_bytes()
    if is_gone or suffix == "parquet":
        kept.unlink()
    else:
        kept.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match="lost something since its run ended; --overwrite begin"):
        label(source, output, Counting())
    assert kept.exists() == (not is_gone and suffix != "parquet")
    kept.write_bytes(content)
    label(source, output, Counting())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": 9, "mark": {}}'])
def test_a_damaged_mark_is_no_place_to_go_on(content: str, tmp_path: Path) -> None:
    source, output = write_input(tmp_path / "in.csv", 20), tmp_path / "out.csv"
    output.write_text("text\n", "utf-8")
    (tmp_path / "out.csv.progress").write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=r"begins .* anew"):
        label(source, output, Counting())


def test_standard_input_does_not_go_on(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "out.csv.progress").write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match="cannot be read again"):
        predict("-", "--adapter", "news", "-o", tmp_path / "out.csv")


class Endless:
    """Rows from nowhere."""

    columns = ["text"]  # noqa: RUF012

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def rows(self) -> Iterator[Row]:
        return (Row(f"x:{i}", {"text": f"row {i}"}) for i in range(self._num_rows))

    def fraction(self) -> float | None:
        return None


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (1_000, 5_000):
        source = Endless(num_rows)
        added = AddedColumns(LABELS)
        output = Destination(tmp_path / f"{num_rows}.csv", Format.CSV, Path("-"), Format.CSV).open(
            source, "text", added, {}
        )
        gc.collect()
        tracemalloc.start()
        with closing(output):
            Run(source, "text", added, output, Lines()).label_all(Counting())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000
    with (tmp_path / "5000.csv").open(encoding="utf-8") as file:
        assert sum(1 for _ in csv.reader(file)) == 5_001
