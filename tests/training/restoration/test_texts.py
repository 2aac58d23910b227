import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finlora.errors import ConfigError
from finlora.training.restoration.texts import load_corpus, pack
from tests.training.rows import make_rows, write_rows


def test_text_files_hold_texts_between_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(f"Text {i}\nof two lines" for i in range(60)) + "\n\n\nText 0\n")
    corpus = load_corpus([file], [])
    both = [*corpus.train, *corpus.held_out]
    assert sorted(both) == sorted({*(f"Text {i}\nof two lines" for i in range(60)), "Text 0"})
    assert 0 < len(corpus.held_out) < len(corpus.train)


def test_prompts_give_their_input_alone(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", make_rows()[:30])
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "Profit fell."}) + '\n{"sentence": "New."}\n')
    corpus = load_corpus([file], [other])
    assert set(corpus.held_out) == {"Profit fell.", "New."}
    assert "Profit rose." in corpus.train
    assert "Profit fell." not in corpus.train


def test_a_line_without_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2"):
        load_corpus([file], [])


def test_texts_are_packed_with_ends_between(fast: PreTrainedTokenizerFast) -> None:
    found = pack(["Profit rose."] * 40, fast, 2, length=16, max_sequences=5)
    assert found.shape == (5, 16)
    once = fast.backend_tokenizer.encode("Profit rose.", add_special_tokens=False).ids
    assert found.flatten().tolist() == ([*once, 2] * 40)[: 5 * 16]
    with pytest.raises(ConfigError, match="less than one sequence"):
        pack(["x"], fast, 2, length=16, max_sequences=5)


def test_control_tokens_in_a_text_are_text(fast: PreTrainedTokenizerFast) -> None:
    found = pack(["<|im_end|>"] * 9, fast, 0, length=8, max_sequences=1)
    assert 2 not in found.flatten().tolist()
