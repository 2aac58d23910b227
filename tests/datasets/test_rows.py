import random
from pathlib import Path

import pytest

from finlora.datasets.row_files import read_rows
from finlora.datasets.rows import Row, find_labels, first_rows, split_given, split_rows
from finlora.errors import ConfigError
from finlora.prompts import instruction_template
from tests.training.rows import TEMPLATE, make_rows, write_rows


def test_rows_survive_the_file(rows_file: Path) -> None:
    assert read_rows([rows_file]) == make_rows()


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl")
    file.write_text("\n" + file.read_text() + "\n\n")
    assert len(read_rows([file])) == len(make_rows())


def test_a_byte_order_mark_is_no_part_of_the_first_row(rows_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    file.write_text(rows_file.read_text("utf-8"), "utf-8-sig")
    assert read_rows([file]) == make_rows()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1, 2]", "row"),
        ('{"context": "Input: a"}', "target"),
        ('{"context": 7, "target": "x"}', "context"),
        ('{"context": "", "target": "x"}', "context"),
        ('{"context": "c", "target": "  "}', "target is empty"),
        ("[" * 100_000, "not a JSON object"),
        (r'{"context": "half a pair: \ud83d", "target": "x"}', "surrogates"),
        (r'{"context": "c", "target": "x", "messages": "\ud83d"}', "surrogates"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    file = write_rows(tmp_path / "bad.jsonl")
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=rf"bad\.jsonl:{len(make_rows()) + 1}: .*{reason}"):
        read_rows([file])


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows([tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match="no rows"):
        read_rows([tmp_path / "empty.jsonl"])
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_rows([tmp_path / "binary.jsonl"])


def test_text_is_the_input_without_case_spacing_and_width() -> None:
    row = Row(TEMPLATE.render("  Profit\nROSE  \uff14 % "), "positive")
    assert row.text == "profit rose 4 %"
    assert Row("Free  Text", "x").text == "free text"


def test_split_depends_on_the_text_alone() -> None:
    rows = make_rows()
    split = split_rows(rows, 0.3)
    shuffled = random.Random(1).sample(rows, len(rows))
    again = split_rows([*shuffled, Row(TEMPLATE.render("A new row."), "neutral")], 0.3)
    assert {row.text for row in split.valid} <= {row.text for row in again.valid}
    assert {row.text for row in split.train} <= {row.text for row in again.train}
    assert 0.1 < len(split.valid) / len(rows) < 0.5


def test_a_larger_share_keeps_the_rows_held_out_before() -> None:
    rows = make_rows()
    assert set(split_rows(rows, 0.2).valid) <= set(split_rows(rows, 0.4).valid)


def test_duplicates_are_dropped_before_the_split() -> None:
    rows = make_rows()
    twins = [Row(row.context.replace("rose", "ROSE"), row.target) for row in rows]
    split = split_rows(rows + twins, 0.3)
    assert split.num_duplicates == len(rows)
    assert split.train == split_rows(rows, 0.3).train
    texts = [row.text for row in split.train + split.valid]
    assert len(set(texts)) == len(texts)


def test_several_questions_on_one_text_are_no_duplicates_and_share_a_side() -> None:
    questions = ("Is the news good?", "Is the news about the past?", "Does it name a price?")
    rows = [
        Row(instruction_template(question).render(f"Headline {number}."), answer)
        for number in range(100)
        for question, answer in zip(questions, ("Yes", "No", "No"), strict=True)
    ]
    split = split_rows(rows, 0.3)
    assert (split.num_duplicates, split.num_contradictions) == (0, 0)
    assert len(split.train) + len(split.valid) == 300
    assert {row.text for row in split.train}.isdisjoint(row.text for row in split.valid)
    given = split_given(rows, rows[:3])
    assert (given.train, given.valid) == (rows[3:], rows[:3])
    assert first_rows(rows, 100) == first_rows(rows[::-1], 100)


def test_an_answer_is_contradicted_by_another_to_the_same_question_alone() -> None:
    same = [Row(TEMPLATE.render(text), target) for text, target in (("A b", "x"), ("a  B", "y"))]
    other = Row(instruction_template("Another question").render("A b"), "y")
    split = split_rows([*same, other], 0.5)
    assert [*split.train, *split.valid] == [same[0], other]
    assert (split.num_duplicates, split.num_contradictions) == (1, 1)


def test_validation_rows_are_taken_out_of_given_training_rows() -> None:
    rows = make_rows()
    split = split_given(rows, rows[:5])
    assert split.valid == rows[:5]
    assert split.train == rows[5:]
    assert split.num_duplicates == 5


def test_a_sample_does_not_depend_on_order() -> None:
    rows = make_rows()
    assert set(first_rows(rows, 7)) == set(first_rows(rows[::-1], 7))


def test_labels_are_found_or_checked() -> None:
    rows = make_rows()
    assert find_labels(rows, None) == ["negative", "neutral", "positive"]
    assert find_labels(rows, ["positive", "neutral", "negative"])[0] == "positive"
    with pytest.raises(ConfigError, match="'negative' is none of the labels"):
        find_labels(rows, ["neutral", "positive"])


def test_a_single_label_is_nothing_to_learn() -> None:
    rows = [row for row in make_rows() if row.target == "neutral"]
    with pytest.raises(ConfigError, match="nothing to learn"):
        find_labels(rows, None)


def test_free_answers_are_not_labels() -> None:
    assert find_labels([Row(f"question {i}", f"answer {i}") for i in range(40)], None) == []
