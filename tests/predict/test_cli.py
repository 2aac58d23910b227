"""`finlora predict` from file to file."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from finlora.errors import ConfigError, FinLoRAError, RequestError
from finlora.predict.cli import main
from tests.predict.conftest import HEADLINES, LABELS, Predict

ADDED = ["label", "probability", "probability_bad", "probability_good", "error"]
Expected = dict[str, dict[str, float]]


def read_csv(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def check(row: dict[str, Any], chances: dict[str, float]) -> None:
    assert float(row["probability_bad"]) == pytest.approx(chances["bad"], abs=1e-4)
    assert float(row["probability_good"]) == pytest.approx(chances["good"], abs=1e-4)
    assert row["label"] == max(chances, key=chances.__getitem__)
    assert float(row["probability"]) == pytest.approx(max(chances.values()), abs=1e-4)
    assert not row["error"]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables(
    suffix: str, delimiter: str, predict: Predict, expected: Expected, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "headline": h, "desk": "€"} for i, h in enumerate(HEADLINES)]
    source = write_csv(tmp_path / f"news.{suffix}", rows, delimiter)
    output = tmp_path / f"out.{suffix}"
    assert predict(source, "--adapter", "news", "-o", output) == 0
    found = read_csv(output.read_bytes().decode(), delimiter)
    assert list(found[0]) == ["id", "headline", "desk", *ADDED]
    for row, given in zip(found, rows, strict=True):
        assert {name: row[name] for name in given} == given
        check(row, expected[given["headline"]])
    assert sorted(tmp_path.iterdir()) == sorted([source, output])


def test_json_lines_keep_their_types(predict: Predict, expected: Expected, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": h, "n": i, "tags": ["a", None], "x": 1.5} for i, h in enumerate(HEADLINES)
    ]
    rows[2]["only here"] = {"deep": True}
    source, output = tmp_path / "news.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    assert predict(source, "--adapter", "news", "-o", output) == 0
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    for row, given in zip(found, rows, strict=True):
        assert {name: row[name] for name in given} == given
        check(row, expected[given["text"]])


def test_parquet_keeps_its_types(predict: Predict, expected: Expected, tmp_path: Path) -> None:
    source, output = tmp_path / "news.parquet", tmp_path / "out.parquet"
    given = pa.table({"text": HEADLINES, "n": pa.array([1, 2, None, 4], pa.int16())})
    parquet.write_table(given, source)
    assert predict(source, "--adapter", "news", "-o", output) == 0
    found = parquet.read_table(output)
    assert found.select(["text", "n"]).equals(given)
    assert found.schema.names == ["text", "n", *ADDED]
    for row in found.to_pylist():
        check(row, expected[row["text"]])
    assert sorted(tmp_path.iterdir()) == sorted([source, output])


def test_from_one_format_to_another(predict: Predict, expected: Expected, tmp_path: Path) -> None:
    rows = [{"text": h, "n": i, "ok": None} for i, h in enumerate(HEADLINES)]
    source = tmp_path / "news.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for name in ("a.parquet", "b.csv"):
        assert predict(source, "--adapter", "news", "-o", tmp_path / name) == 0
    typed = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    text = read_csv((tmp_path / "b.csv").read_bytes().decode())
    assert [(row["n"], row["ok"]) for row in typed] == [(str(i), None) for i in range(4)]
    assert [(row["n"], row["ok"]) for row in text] == [(str(i), "") for i in range(4)]
    assert [row["label"] for row in typed] == [row["label"] for row in text]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_line_ends_in_a_cell_end_no_row(
    suffix: str, delimiter: str, predict: Predict, tmp_path: Path
) -> None:
    texts = ["Profit\rrose", "Profit\r\nrose", "Profit\nrose", "Profit rose\r", "Profit rose"]
    source, output = tmp_path / "news.jsonl", tmp_path / f"out.{suffix}"
    lines = [json.dumps({"text": text, "of\rday": str(i)}) for i, text in enumerate(texts)]
    source.write_text("\n".join(lines), "utf-8")
    assert predict(source, "--adapter", "news", "-o", output) == 0
    written = output.read_bytes().decode()
    found = read_csv(written, delimiter)
    assert [(row["text"], row["of\rday"]) for row in found] == [
        (text, str(i)) for i, text in enumerate(texts)
    ]
    assert all(row["label"] in LABELS for row in found)
    assert written.splitlines(keepends=True)[-1].endswith(f"{delimiter}\n")


def test_bad_lines_of_a_table_are_told_and_kept(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "news.csv"
    source.write_bytes(
        b"text,desk\ngood row,a\n   ,b\nshort\none,too,many\n"
        b'"never "closed",c\nnot \xff UTF-8,d\n' + b"word " * 200 + b",e\nlast row,f\n"
    )
    assert predict(source, "--adapter", "news", "-o", tmp_path / "out.csv") == 3
    found = read_csv((tmp_path / "out.csv").read_bytes().decode())
    assert [row["desk"] for row in found] == ["a", "b", "", "too", "", "d", "e", "f"]
    reasons = [row["error"].removeprefix(f"{source}:") for row in found]
    for reason, start in zip(
        reasons,
        ["", "3: no text", "4: 1 fields where", "5: 3 fields", "6: not CSV", "7: ", "8: this", ""],
        strict=True,
    ):
        assert reason.startswith(start)
        assert bool(reason) == bool(start)
    assert "not valid Unicode" in reasons[5]
    assert "context is 128 tokens" in reasons[6]
    assert not any(row["label"] for row in found if row["error"])
    told = capsys.readouterr().err
    assert all(reason in told for reason in reasons)
    assert "8 rows in" in told
    assert "6 of them with an error" in told


def test_bad_json_lines_are_told_and_kept(predict: Predict, tmp_path: Path) -> None:
    lines = [
        '{"text": "good row"}', "{oops", '["text"]', '{"text": 7}', '{"other": "x"}',
        '{"text": "\\ud800"}', '{"text": "t", "label": "mine"}', "[" * 100_000,
    ]  # fmt: skip
    source, output = tmp_path / "news.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines), "utf-8")
    assert predict(source, "--adapter", "news", "-o", output) == 3
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    wanted = ["", "not JSON", "not a JSON object", "no text but 7", "no text in", "Unicode",
              "'label' is in the way", "not JSON"]  # fmt: skip
    for number, (row, what) in enumerate(zip(found, wanted, strict=True), start=1):
        assert what in (row["error"] or "")
        assert bool(row["error"]) == bool(what)
        assert not what or row["error"].startswith(f"{source}:{number}: ")


def test_a_row_with_new_columns_has_no_place_in_a_table(predict: Predict, tmp_path: Path) -> None:
    source = tmp_path / "news.jsonl"
    source.write_text('{"text": "a b"}\n{"text": "c", "new": 1}\n', "utf-8")
    assert predict(source, "--adapter", "news", "-o", tmp_path / "out.csv") == 3
    found = read_csv((tmp_path / "out.csv").read_text("utf-8"))
    assert "'new' is not in the first row" in found[1]["error"]


def test_standard_streams(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = "\ufeffheadline\n" + "".join(f"row {i}\n" for i in range(5))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(1, "w", closefd=False)))
    assert predict("-", "--adapter", "news") == 0
    found = read_csv(capfdbinary.readouterr().out.decode())
    assert [row["headline"] for row in found] == [f"row {i}" for i in range(5)]
    assert {row["label"] for row in found} <= {*LABELS}


def test_own_labels_template_and_prefix(predict: Predict, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "news.csv", [{"body": "Profit rose", "label": "up"}])
    arguments = [source, "-o", tmp_path / "out.csv", "--labels", "up, down", "--prefix", "p_"]
    assert predict(*arguments, "--template", "{input}: ", "--text-column", "body") == 0
    (row,) = read_csv((tmp_path / "out.csv").read_text("utf-8"))
    assert list(row) == ["body", "label", "p_label", "p_probability", "p_probability_up",
                         "p_probability_down", "p_error"]  # fmt: skip
    assert row["label"] == "up"


@pytest.mark.parametrize(
    ("content", "arguments", "what"),
    [
        ("a,b\n", [], "choose the text with --text-column, out of a, b"),
        ("a,b\n", ["--text-column", "c"], "no column 'c', only a, b"),
        ("text,label\n", [], "label already; choose others with --prefix"),
        ("", [], "is empty"),
        ("a,a\n", [], "two columns have the same name"),
        ('"a\n', [], "not CSV"),
        ("text\n", ["--url", "http://127.0.0.1:9"], "does not answer"),
        ("text\n", ["--url", "nonsense"], "nonsense"),
        ("text\n", ["--url", "x", "--threads", "1"], "--threads is for the engine here"),
        ("text\n", ["--adapter", "nobody"], "nobody"),
        ("text\n", ["--template", "nothing", "--labels", "a,b"], "exactly once"),
        ("text\n", ["-o", "no/such/folder.csv"], "no is no folder|no/such is no folder"),
        ("text\n", ["-o", "out.xls"], "--output-format"),
    ],
)
def test_what_cannot_be_done_is_said(
    content: str, arguments: list[str], what: str, predict: Predict, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("news.csv").write_text(content, "utf-8")
    adapter = [] if {"--adapter", "--template"} & {*arguments} else ["--adapter", "news"]
    everything = ["news.csv", *adapter, *([] if "-o" in arguments else ["-o", "out.csv"])]
    if "--url" in arguments:
        with pytest.raises(FinLoRAError, match=what):
            main([*everything, *arguments])
    else:
        with pytest.raises(FinLoRAError, match=what):
            predict(*everything, *arguments)
    assert not Path("out.csv").exists()


def test_inputs_that_are_not_there_or_not_what_they_seem(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "fake.parquet").write_text("text\n", "utf-8")
    for name, what in [
        ("no.csv", "No such file"), ("no.parquet", "no such file"), ("fake.parquet", "not Parquet"),
        ("what.xls", "--input-format"), ("-.parquet", "no such file"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=what):
            predict(tmp_path / name, "--adapter", "news", "-o", tmp_path / "out.csv")


def test_the_input_is_never_overwritten(predict: Predict, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "news.csv", [{"text": "a"}])
    with pytest.raises(ConfigError, match="is the input"):
        predict(source, "--adapter", "news", "-o", source, "--overwrite")
    assert read_csv(source.read_text("utf-8")) == [{"text": "a"}]


def test_an_output_is_overwritten_only_when_asked(predict: Predict, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "news.csv", [{"text": "a b"}])
    output = tmp_path / "out.csv"
    output.write_text("precious", "utf-8")
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        predict(source, "--adapter", "news", "-o", output)
    assert output.read_text("utf-8") == "precious"
    assert predict(source, "--adapter", "news", "-o", output, "--overwrite") == 0
    assert len(read_csv(output.read_text("utf-8"))) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("no.csv", ["--adapter", "news"]),
        ("news.csv", ["--adapter", "nobody"]),
        ("news.csv", ["--adapter", "news", "--text-column", "none"]),
        ("labelled.csv", ["--adapter", "news", "--text-column", "text"]),
    ],
)
def test_an_output_is_replaced_only_by_another(
    name: str, arguments: list[str], predict: Predict, tmp_path: Path
) -> None:
    write_csv(tmp_path / "news.csv", [{"text": "a b"}])
    write_csv(tmp_path / "labelled.csv", [{"text": "a b", "label": "mine"}])
    output, progress = tmp_path / "out.csv", tmp_path / "out.csv.progress"
    output.write_text("precious", "utf-8")
    progress.write_text("where it ended", "utf-8")
    with pytest.raises(FinLoRAError):
        predict(tmp_path / name, "-o", output, "--overwrite", *arguments)
    assert output.read_text("utf-8") == "precious"
    assert progress.read_text("utf-8") == "where it ended"


def test_the_base_needs_labels(predict: Predict, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "news.csv", [{"text": "a"}])
    with pytest.raises(RequestError, match="labels"):
        predict(source, "-o", tmp_path / "out.csv")
