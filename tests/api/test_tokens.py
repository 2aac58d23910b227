"""Tokens as text, for byte-level tokenizers and for those of the sentencepiece kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from finlora.api.tokens import TextCursor, Vocabulary
from tests import tiny_models

BYTE_LEVEL: Tokenizer = tiny_models.tokenizer().backend_tokenizer
VOCABULARY = Vocabulary(BYTE_LEVEL)


def sentencepiece() -> Tokenizer:
    """A tokenizer as Llama 2 and Gemma have: a mark for the space, single bytes for the rest."""
    tokens = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("\u2581", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@given(st.text())
def test_bytes_of_all_tokens_are_the_text(text: str) -> None:
    token_ids = BYTE_LEVEL.encode(text).ids
    assert b"".join(map(VOCABULARY.bytes_of, token_ids)) == text.encode()
    assert VOCABULARY.text(token_ids) == text


@given(st.text(st.sampled_from("ab é€🎉"), max_size=20))
def test_bytes_of_sentencepiece_tokens_are_the_text(text: str) -> None:
    tokenizer = sentencepiece()
    assert Vocabulary(tokenizer).text(tokenizer.encode(text).ids) == text


@given(st.text())
def test_offsets_of_a_prompt_agree_with_its_bytes(text: str) -> None:
    token_ids = BYTE_LEVEL.encode(text).ids
    cursor = TextCursor()
    assert VOCABULARY.prompt_offsets(text) == [
        cursor.advance(VOCABULARY.bytes_of(token_id)) for token_id in token_ids
    ]
    assert cursor.position == len(text)


def test_a_part_of_a_character_is_shown_as_bytes() -> None:
    token_ids = BYTE_LEVEL.encode("Ω").ids
    labels = [VOCABULARY.label(token_id) for token_id in token_ids]
    assert labels == ["bytes:\\xce", "bytes:\\xa9"]


def test_a_special_token_is_shown_by_its_name() -> None:
    [token_id] = BYTE_LEVEL.encode(tiny_models.END).ids
    assert VOCABULARY.is_special(token_id)
    assert VOCABULARY.label(token_id) == tiny_models.END


@pytest.mark.parametrize("text", ["plain", "one\n\ntwo  three", "<|im_start|>user\nhé"])
def test_offsets_never_go_back(text: str) -> None:
    offsets = VOCABULARY.prompt_offsets(text)
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert offsets[-1] < len(text)


def test_an_id_beyond_the_tokenizer_adds_no_text() -> None:
    assert VOCABULARY.bytes_of(10**6) == b""
