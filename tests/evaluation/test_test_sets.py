import json
from pathlib import Path

import pytest

from finlora.datasets.row_files import Columns
from finlora.datasets.rows import Message, Row
from finlora.errors import ConfigError
from finlora.evaluation import test_sets
from finlora.evaluation.test_sets import TASKS, load_test_set
from finlora.prompts import sentiment_template
from tests.evaluation.test_tweet_labels import swapped, tweets
from tests.training.rows import LABELS, TEMPLATE, make_rows, write_rows


@pytest.mark.parametrize("below", ["", "test"])
def test_tasks_are_read_from_finloras_files(tmp_path: Path, below: str) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    write_rows(tmp_path / below / "fpb_test.jsonl")
    found = load_test_set("fpb", tmp_path)
    assert found.name == "fpb"
    assert found.labels == LABELS
    assert list(found.rows) == make_rows()
    assert found.notes == ()


def test_tasks_are_made_from_their_source(tmp_path: Path) -> None:
    folder = tmp_path / "tfns"
    folder.mkdir()
    (folder / "sent_train.csv").write_text("text,label\nA,0\n")
    (folder / "sent_valid.csv").write_text("text,label\nB falls,0\nC rises,1\nD,2\n")
    found = load_test_set("tfns", tmp_path)
    assert [row.target for row in found.rows] == ["negative", "positive", "neutral"]
    assert found.rows[1].context == sentiment_template("tweet", LABELS).render("C rises")


def test_finloras_swapped_tweets_are_put_right(tmp_path: Path) -> None:
    write_rows(tmp_path / "tfns_test.jsonl", swapped(tweets()))
    told: list[str] = []
    found = load_test_set("tfns", tmp_path, warn=told.append)
    assert list(found.rows) == tweets()
    assert "swapped" in found.notes[0]
    assert "tfns_test.jsonl" in told[0]


def test_a_label_outside_the_task_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "nwgi_test.jsonl", [Row(TEMPLATE.render("x"), "great")])
    with pytest.raises(ConfigError, match="great"):
        load_test_set("nwgi", tmp_path)
    assert len(TASKS["nwgi"].labels) == 7


def test_any_file_with_labels(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "own.jsonl")
    found = load_test_set(str(file))
    assert (found.name, found.labels) == ("own", LABELS)
    assert load_test_set(str(file), labels=["positive", "neutral", "negative"]).labels[0] == (
        "positive"
    )


def test_a_file_here_comes_before_one_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_rows(tmp_path / "there" / "own.jsonl")
    assert len(load_test_set("own.jsonl", tmp_path / "there").rows) == 36
    write_rows(tmp_path / "here" / "own.jsonl", make_rows()[:12])
    assert len(load_test_set("own.jsonl", tmp_path / "there").rows) == 12


def test_a_table_with_columns(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("headline,mood\nProfit rose,1\nProfit fell,0\n")
    columns = Columns("headline", "mood", TEMPLATE, {"0": "negative", "1": "positive"})
    found = load_test_set(str(file), columns=columns)
    assert found.rows[0] == Row(TEMPLATE.render("Profit rose"), "positive")


def test_free_text_is_no_test_set(tmp_path: Path) -> None:
    file = tmp_path / "free.jsonl"
    rows = [{"context": f"{i}? ", "target": f"answer {i}"} for i in range(50)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match="--labels"):
        load_test_set(str(file))


def test_a_sample_does_not_depend_on_the_order(tmp_path: Path) -> None:
    whole = load_test_set(str(write_rows(tmp_path / "a.jsonl")))
    turned = load_test_set(str(write_rows(tmp_path / "b.jsonl", make_rows()[::-1])))
    assert whole.sample(10).rows == turned.sample(10).rows
    assert "10 of 36 rows" in whole.sample(10).notes[0]
    assert whole.sample(100) is whole
    assert whole.sha256 != whole.sample(10).sha256


def test_the_hash_knows_the_turns_of_chats() -> None:
    def of(*roles: str) -> str:
        turns = tuple(Message(role, "x") for role in roles)
        return test_sets.TestSet("chats", (Row("x\nx", "a", turns),), ("a", "b")).sha256

    assert len({of(), of("system", "user"), of("user", "user")}) == 3
