import re
from itertools import islice
from pathlib import Path

import pytest

from loadtest.peers.load import DEFAULT_DATA, Load
from loadtest.peers.prompts import PromptSource, fresh_prompts, read_contexts

CONTEXTS = [
    f"Instruction: What is the sentiment?\nInput: {headline}\nAnswer: "
    for headline in ("Profit rose 12 percent.", "Shares fell.", "The board met on 3 May.")
]


def test_the_rows_themselves_come_first() -> None:
    assert sorted(fresh_prompts(CONTEXTS, 3)) == sorted(CONTEXTS)


def test_no_prompt_repeats_however_many_are_taken() -> None:
    prompts = fresh_prompts(CONTEXTS, 500)
    assert len(set(prompts)) == 500


def test_rounds_continue_one_sequence() -> None:
    whole = fresh_prompts(CONTEXTS, 40)
    assert fresh_prompts(CONTEXTS, 15) + fresh_prompts(CONTEXTS, 25, offset=15) == whole


def test_variants_keep_the_instruction_and_differ_at_once_after_it() -> None:
    variants = fresh_prompts(CONTEXTS, 30, offset=3)
    head = "Instruction: What is the sentiment?\nInput: "
    assert all(v.startswith(head) and v.endswith("\nAnswer: ") for v in variants)
    assert len({v.removeprefix(head)[:5] for v in variants}) == 30


def test_a_source_never_repeats_itself_nor_gives_a_row_as_it_stands() -> None:
    source = PromptSource(CONTEXTS)
    blocks = source.blocks(40, 2) + source.blocks(25) + [list(islice(source.endless(), 35))]
    prompts = [prompt for block in blocks for prompt in block]
    assert len(prompts) == len({*prompts}) == 40 * 2 + 25 + 35
    assert not set(prompts) & set(CONTEXTS)


def test_blocks_of_a_round_tell_the_same_headlines() -> None:
    first, second = PromptSource(CONTEXTS).blocks(7, 2)
    for one, two in zip(first, second, strict=True):
        assert re.sub(r"\d|[A-Z]{5}", "", one) == re.sub(r"\d|[A-Z]{5}", "", two)
        assert len(one) == len(two)


def test_prompts_apart_have_no_beginning_in_common() -> None:
    prompts = list(islice(PromptSource(CONTEXTS).endless_apart(), 200))
    assert len({prompt[:5] for prompt in prompts}) == 200
    assert all("Instruction: What is the sentiment?\nInput: " in prompt for prompt in prompts)


def test_two_sources_give_the_same_prompts() -> None:
    assert PromptSource(CONTEXTS).blocks(9) == PromptSource(CONTEXTS).blocks(9)


def test_reading_drops_repeated_rows_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"context": "a", "target": "x"}\n\n{"context": "b"}\n{"context": "a"}\n')
    assert read_contexts(file) == ["a", "b"]


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        read_contexts(file)


def test_the_headlines_of_this_project_fill_a_round_without_variants() -> None:
    assert len(read_contexts(DEFAULT_DATA)) >= Load.warmup + Load.requests
