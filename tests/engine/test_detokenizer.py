"""Text as it comes equals text at once; stop strings end it and never show."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finlora.engine.detokenizer import Detokenizer
from tests.engine.requests import tiny_tokenizer

TEXTS = st.text(alphabet="aäb€ 🎉cn1\n", max_size=30)


def stream(
    token_ids: list[int], stop: tuple[str, ...] = (), prompt: Sequence[int] = ()
) -> tuple[list[str], str | None]:
    detokenizer = Detokenizer(tiny_tokenizer(), prompt, stop)
    pieces = []
    for token_id in token_ids:
        done = detokenizer.append(token_id)
        pieces.append(detokenizer.take(final=done))
        if done:
            return pieces, detokenizer.stop_reason
    detokenizer.flush()
    return [*pieces, detokenizer.take(final=True)], None


def encode(text: str) -> list[int]:
    token_ids: list[int] = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    return token_ids


@given(TEXTS)
def test_pieces_make_the_text_and_none_breaks_a_character(text: str) -> None:
    pieces, _ = stream(encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(TEXTS, st.lists(st.text(alphabet="aäb€ ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, reason = stream(encode(text), tuple(stop))
    streamed = "".join(pieces)
    found = [position for position in (text.find(s) for s in stop) if position >= 0]
    if reason is None:
        assert not found
        assert streamed == text
    else:
        assert reason in stop
        assert text.startswith(streamed + reason)
        assert not any(s in streamed for s in stop)


def test_a_beginning_that_comes_to_nothing_is_given_out_after_all() -> None:
    pieces, reason = stream(encode("ab c"), ("abc",))
    assert "".join(pieces) == "ab c"
    assert reason is None
    assert pieces[0] == ""


def test_an_unfinished_character_shows_at_the_end_only() -> None:
    euro = encode("€")
    assert len(euro) > 1, "the test needs a character of several tokens"
    pieces, _ = stream(encode("a") + euro[:-1])
    assert pieces[:-1] == ["a"] + [""] * (len(euro) - 1)
    assert pieces[-1].startswith("\ufffd")


@pytest.mark.parametrize("before", ["", "ab ", "a long text, "])
@pytest.mark.parametrize("num_missing", [1, 2])
def test_a_character_that_the_prompt_began_is_all_that_comes_of_the_prompt(
    before: str, num_missing: int
) -> None:
    ids = encode(f"{before}🎉 c")
    begun = encode(f"{before}🎉")[:-num_missing]
    assert ids[: len(begun)] == begun
    pieces, _ = stream(ids[len(begun) :], prompt=begun)
    assert "".join(pieces) == "🎉 c"


def test_a_character_that_never_gets_its_end_is_the_prompts() -> None:
    pieces, _ = stream(encode("bc"), prompt=encode("a🎉")[:-1])
    assert "".join(pieces) == "bc"
    assert "".join(stream(encode("bc"), prompt=encode("a\ufffd"))[0]) == "bc"


def test_special_tokens_leave_no_text() -> None:
    end = tiny_tokenizer().token_to_id("<|im_end|>")
    assert end is not None
    pieces, _ = stream([*encode("a"), end, *encode("b")])
    assert "".join(pieces) == "ab"
