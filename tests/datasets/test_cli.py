"""Made-up rows in each source's own form, through the command as a user runs it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet

from finlora.datasets.cli import main
from finlora.datasets.readers import READERS
from finlora.datasets.row_files import read_rows
from finlora.datasets.rows import Row
from finlora.datasets.tasks import TASKS
from finlora.errors import ConfigError

NEWS = (
    "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}."
)
TWEET = NEWS.replace("news", "tweet")


def write(file: Path, rows: list[dict[str, Any]], tags: list[str] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines) + "\n")
    elif file.suffix == ".xlsx":
        book = openpyxl.Workbook()
        sheet = book.active
        assert sheet is not None
        for line in (list(rows[0]), *(list(row.values()) for row in rows)):
            sheet.append(line)
        book.save(file)
    elif file.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(rows)
        if tags:
            features = {"ner_tags": {"feature": {"names": tags, "_type": "ClassLabel"}}}
            facts = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": facts})
        parquet.write_table(table, file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(task: str, source: Path, output: Path, *more: str) -> tuple[list[Row], list[Row]]:
    assert main(["prepare", task, "--from", str(source), "--output", str(output), *more]) == 0
    names = TASKS[task].train_file, TASKS[task].test_file
    train, test = (
        read_rows([output / side / n]) for side, n in zip(("train", "test"), names, strict=True)
    )
    return train, test


def write_sentiment(folder: Path) -> None:
    lines = "\n".join(
        f"Caf\xe9 chain {i} opens@{'positive' if i % 2 else 'neutral'}" for i in range(40)
    )
    (folder / "fpb").mkdir(parents=True)
    with zipfile.ZipFile(folder / "fpb" / "v1.zip", "w") as archive:
        archive.writestr("FinancialPhraseBank-v1.0/Sentences_50Agree.txt", lines.encode("latin-1"))
        archive.writestr("__MACOSX/Sentences_50Agree.txt", b"junk")
    fiqa = [
        {"sentence": "Up it goes", "score": 0.5, "type": "post"},
        {"sentence": "Flat it stays", "score": 0.0999, "type": "headline"},
        {"sentence": "Down it goes", "score": -0.11, "type": "headline"},
    ]
    write(folder / "fiqa" / "data" / "train-0.parquet", fiqa)
    write(folder / "fiqa" / "data" / "test-0.parquet", [fiqa[0] | {"sentence": "Up again"}])
    tfns = [{"text": f"$T{i} moves", "label": i} for i in range(3)]
    write(folder / "tfns" / "sent_train.csv", tfns)
    write(folder / "tfns" / "sent_valid.csv", [{"text": "$T9 falls", "label": 0}, tfns[1]])
    nwgi = [{"news": "Mild weather", "label": "mildly positive"}]
    write(folder / "nwgi" / "train.jsonl", nwgi)
    write(folder / "nwgi" / "test.jsonl", [{"news": "Storm", "label": "strong negative"}])


def test_sentiment_has_the_official_labels_and_no_test_text_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sentiment(tmp_path / "sources")
    train, test = prepare("sentiment", tmp_path / "sources", tmp_path / "data")
    answers = {row.context: row.target for row in train}

    def answer(instruction: str, text: str) -> str:
        return answers[f"Instruction: {instruction}\nInput: {text}\nAnswer: "]

    assert answer(TWEET, "$T0 moves") == "negative"
    assert answer(TWEET, "$T2 moves") == "neutral"
    assert answer(TWEET, "Up it goes") == "positive"
    assert answer(NEWS, "Flat it stays") == "neutral"
    assert answer(NEWS, "Down it goes") == "negative"
    assert "mildly positive" in answers.values()
    # "$T1 moves" is a row of the test file too.
    assert not {row.text for row in train} & {row.text for row in test}
    assert sum("caf\xe9 chain" in row.text for row in train + test) == 40
    told = capsys.readouterr()
    assert "licence: CC BY-NC-SA 3.0" in told.err
    assert "1 training rows left out" in told.err
    assert f"finlora_sentiment_train.jsonl: {len(train)} rows" in told.out
    origin = tmp_path / "data" / "train" / "finlora_sentiment_train.jsonl.sources.json"
    assert [source["licence"] for source in json.loads(origin.read_text())][2] == "MIT"


def test_a_phrasebank_line_ends_where_its_file_says(tmp_path: Path) -> None:
    lines = b"Sales rose \x85 again@positive\r\nCosts\x0c fell@negative\r\n"
    (tmp_path / "Sentences_50Agree.txt").write_bytes(lines)
    with zipfile.ZipFile(tmp_path / "v1.zip", "w") as archive:
        archive.writestr("Sentences_50Agree.txt", lines)
    from_text = [row for _, row in READERS["fpb"](tmp_path)]
    assert [row.target for row in from_text] == ["positive", "negative"]
    (tmp_path / "Sentences_50Agree.txt").unlink()
    assert [row for _, row in READERS["fpb"](tmp_path)] == from_text


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_sentiment(tmp_path / "sources")
    files = []
    for name in ("a", "b"):
        prepare("sentiment", tmp_path / "sources", tmp_path / name)
        files.append((tmp_path / name / "train" / "finlora_sentiment_train.jsonl").read_bytes())
    assert files[0] == files[1]


def test_one_source_of_several(tmp_path: Path) -> None:
    write_sentiment(tmp_path / "sources")
    train, test = prepare("sentiment", tmp_path / "sources", tmp_path / "data", "--only", "tfns")
    assert (len(train), len(test)) == (2, 2)
    with pytest.raises(ConfigError, match="no source 'reuters'"):
        prepare("sentiment", tmp_path / "sources", tmp_path / "data", "--only", "reuters")


@pytest.mark.parametrize("task", ["headline", "ner"])
def test_instructions(task: str, tmp_path: Path) -> None:
    row = {"instruction": "Does it talk of price?", "input": "Gold up", "output": "Yes"}
    write(tmp_path / "train.parquet", [row])
    write(tmp_path / "test.parquet", [row | {"input": "Gold down"}])
    train, test = prepare(task, tmp_path, tmp_path / "data")
    context = "Instruction: Does it talk of price?\nInput: Gold up\nAnswer: "
    assert train == [Row(context, "Yes")]
    assert "Gold down" in test[0].context


def test_finer_asks_for_four_tags_at_a_time(tmp_path: Path) -> None:
    tags = ["O", "B-DebtInstrumentFaceAmount", "B-Goodwill"]
    rows = [{"tokens": ["Debt", "of", str(i)], "ner_tags": [0, 0, 1 + i % 2]} for i in range(6)]
    write(tmp_path / "train.parquet", rows, tags)
    write(tmp_path / "test.parquet", [{"tokens": ["a", "7"], "ner_tags": [0, 2]}], tags)
    train, test = prepare("finer", tmp_path, tmp_path / "data")
    by_length = sorted(train, key=lambda row: len(row.target))
    four = ",".join(["DebtInstrumentFaceAmount", "Goodwill"] * 2)
    assert [row.target for row in by_length] == ["DebtInstrumentFaceAmount,Goodwill", four]
    assert '4. What is best tag for entity "3" in sentence: "Debt of 3?"' in by_length[1].context
    assert "Answer the following 2 independent questions" in by_length[0].context
    assert test[0].target == "Goodwill"


def test_xbrl_questions_get_the_facts_of_their_context(tmp_path: Path) -> None:
    filing = tmp_path / "DowJones30" / "abc" / "abc.xml"
    filing.parent.mkdir(parents=True)
    filing.write_text(
        '<x:xbrl xmlns:x="http://www.xbrl.org/2003/instance"'
        ' xmlns:g="http://fasb.org/us-gaap/2023" xmlns:o="http://other">'
        '<g:Revenues contextRef="c1" unitRef="usd">12 00</g:Revenues>'
        '<g:Revenues contextRef="c2">7</g:Revenues>'
        '<g:LeaseTextBlock contextRef="c1">long</g:LeaseTextBlock>'
        '<o:Other contextRef="c1">1</o:Other></x:xbrl>'
    )
    row = {
        "instruction": "Value?",
        "input": "What are the revenues?",
        "output": 1200,
        "doc_path": "abc/abc_htm.xml",
        "context_id": "c1",
    }
    write(tmp_path / "train.parquet", [row])
    write(tmp_path / "test.parquet", [row | {"input": "And in c2?", "context_id": "c2"}])
    train, test = prepare("xbrl_extract", tmp_path, tmp_path / "data")
    facts = "<us-gaap:Revenues>1200</>"
    assert train == [Row(f"Value?\nXML File: {facts}\nWhat are the revenues?", "1200")]
    assert "<us-gaap:Revenues>7</>" in test[0].context
    del row["instruction"]
    write(tmp_path / "train.parquet", [row])
    with pytest.raises(ConfigError, match=r"train\.parquet row 1: column 'instruction'"):
        prepare("xbrl_extract", tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("task", "file"), [("sentiment", "fpb/v1.zip"), ("xbrl_term", "terms.xlsx")]
)
@pytest.mark.parametrize("damage", ["text", "cut", "flip"])
def test_a_broken_archive_is_named(task: str, file: str, damage: str, tmp_path: Path) -> None:
    source = tmp_path / task
    write_sentiment(tmp_path / "sentiment")
    terms = [{"Term": f"Term {i}", "Explanation": "x"} for i in range(60)]
    write(tmp_path / "xbrl_term" / "terms.xlsx", terms)
    content = bytearray((source / file).read_bytes())
    if damage == "flip":
        content[len(content) // 3 : len(content) // 2] = b"?" * 9
    broken = {"text": bytearray(b"no archive"), "cut": content[:-30], "flip": content}[damage]
    (source / file).write_bytes(broken)
    with pytest.raises(ConfigError, match=rf"{Path(file).name} is broken: "):
        prepare(task, source, tmp_path / "data")


def test_a_workbook_of_other_things_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "terms.xlsx", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ConfigError, match=r"terms\.xlsx is broken: "):
        prepare("xbrl_term", tmp_path, tmp_path / "data")


def test_terms_and_formulas_from_a_workbook(tmp_path: Path) -> None:
    terms = [{"Term": f"Term {i}", "Explanation": f"It is {i}."} for i in range(60)]
    write(tmp_path / "terms" / "XBRL Terminology.xlsx", terms)
    train, test = prepare("xbrl_term", tmp_path / "terms", tmp_path / "data")
    assert len(train) + len(test) == 60
    assert len(test) < len(train) / 2
    assert train[0].context.startswith("Explain this XBRL term briefly in one sentence: Term ")

    formula: dict[str, Any] = {"Formula Name": "NPV", "Formula": "x", "Explanation": "y"}
    for i in range(1, 21):
        formula |= {f"Question {i}": f"{i}. What is {i}?", f"Answer {i}": i / 2}
    write(tmp_path / "formulas" / "formulas.xlsx", [formula])
    train, test = prepare("formula", tmp_path / "formulas", tmp_path / "data")
    assert (len(train), len(test)) == (16, 4)
    assert "Question: What is 17?. Answer:" in test[0].context
    assert test[0].target == "8.5"


def test_financebench_quotes_whole_pages(tmp_path: Path) -> None:
    page = {"evidence_page_num": 48, "evidence_text_full_page": "Sales: 7", "evidence_text": "7"}
    rows = [{"question": f"Sales {i}?", "answer": "7", "evidence": [page]} for i in range(20)]
    write(tmp_path / "open.jsonl", rows)
    train, test = prepare("financebench", tmp_path, tmp_path / "data")
    assert len(train) + len(test) == 20
    assert "Document Pages Context:\nPage 48:\nSales: 7\n\nAnswer:" in train[0].context


def test_exam_questions_of_ones_own(tmp_path: Path) -> None:
    rows = [
        {"question": f"Which {i}?", "A": "this", "B": "that", "C": "none", "answer": "b"}
        for i in range(20)
    ]
    write(tmp_path / "exam.csv", rows)
    train, _ = prepare("cfa", tmp_path, tmp_path / "data")
    assert train[0].target == "B"
    assert train[0].context.endswith("\nA. this\nB. that\nC. none\nAnswer: ")
    write(tmp_path / "exam.csv", [rows[0] | {"answer": "E"}])
    with pytest.raises(ConfigError, match=r"exam\.csv:2: answer 'E' is none of A, B, C"):
        prepare("cfa", tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("source", "file", "row", "reason"),
    [
        ("tfns", "sent_train.csv", {"text": "a", "label": 3}, "none of 0, 1, 2"),
        ("fiqa", "train.jsonl", {"sentence": "a", "score": "x", "type": "post"}, "not a number"),
        ("nwgi", "train.jsonl", {"news": "a", "label": "good"}, "label 'good' is none of"),
        ("fpb", "Sentences_50Agree.txt", "no label here", "Sentences_50Agree.txt:1"),
    ],
)
def test_a_bad_row_writes_nothing(
    source: str, file: str, row: Any, reason: str, tmp_path: Path
) -> None:
    write_sentiment(tmp_path / "sources")
    folder = tmp_path / "sources" / source
    if isinstance(row, str):
        (folder / file).write_text(row)
    else:
        for old in folder.rglob("*train*"):
            old.unlink()
        write(folder / file, [row])
    with pytest.raises(ConfigError, match=reason):
        prepare("sentiment", tmp_path / "sources", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*fpb.* Sentences_50Agree"):
        main(["prepare", "sentiment", "--from", str(tmp_path)])
    with pytest.raises(ConfigError, match="xbrl_term is on no hub: --from FOLDER"):
        main(["prepare", "xbrl_term"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match="phrasebank is not in the hub's local cache"):
        main(["prepare", "sentiment", "--output", str(tmp_path / "data")])


def test_the_list_shows_sources_and_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    for task in TASKS.values():
        assert f"{task.name}: {task.train_file}" in told
        for source in task.sources:
            assert source.licence in told
            assert source.name in READERS


def test_the_list_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [task["name"] for task in listed] == list(TASKS)
    assert all(task["sources"][0]["licence"] for task in listed)
