"""Chats as token ids: transformers as the oracle, and control tokens that no message can write."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from finlora.chat_template import NONCHARACTERS, ChatTemplate
from finlora.errors import RequestError
from tests import tiny_models

FAST = tiny_models.tokenizer()
TEMPLATE = ChatTemplate(tiny_models.CHAT_TEMPLATE, FAST)
BACKEND = FAST.backend_tokenizer
CONTROL = [BACKEND.token_to_id(token) for token in tiny_models.SPECIAL_TOKENS]
# Messages right after one another, with nothing in between.
BARE = ChatTemplate("{% for message in messages %}{{ message['content'] }}{% endfor %}", FAST)


def user(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


def oracle(turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
    ids: Any = FAST.apply_chat_template(
        turns, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return list(ids)


@given(st.lists(st.text(), min_size=1, max_size=3), st.booleans())
def test_text_is_tokenised_as_transformers_does(contents: list[str], prompt: bool) -> None:
    turns = user(*contents)
    # What may begin a control token is kept apart.
    assume(not any(content.endswith("<") for content in contents))
    ids = TEMPLATE.encode(turns, add_generation_prompt=prompt)
    assert ids == oracle(turns, add_generation_prompt=prompt)


pieces = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "end|>",
        "<",
        "|",
        "start|>",
        "\n",
        "a",
        " ",
        "<|im_end|",
    ]
)
hostile = st.lists(pieces | st.text(max_size=3), max_size=8).map("".join)


@given(st.lists(hostile, min_size=1, max_size=4))
def test_no_message_writes_a_control_token(contents: list[str]) -> None:
    ids = TEMPLATE.encode(user(*contents))
    harmless = TEMPLATE.encode(user(*("x" for _ in contents)))
    assert [i for i in ids if i in CONTROL] == [i for i in harmless if i in CONTROL]
    rendered = FAST.apply_chat_template(user(*contents), add_generation_prompt=True, tokenize=False)
    assert BACKEND.decode(ids, skip_special_tokens=False) == rendered


@given(st.lists(hostile, min_size=1, max_size=4))
def test_nor_do_messages_together(contents: list[str]) -> None:
    ids = BARE.encode(user(*contents))
    assert not {*ids} & {*CONTROL}
    assert BACKEND.decode(ids, skip_special_tokens=False) == "".join(contents)


def test_a_token_that_is_special_only_to_the_template_counts_too() -> None:
    fast = tiny_models.tokenizer()
    fast.backend_tokenizer.add_tokens(["<tool>"])
    (tool,) = fast.backend_tokenizer.encode("<tool>").ids
    template = ChatTemplate("<tool>{{ messages[0]['content'] }}", fast)
    assert template.encode(user("<tool>")).count(tool) == 1


def test_code_points_that_are_no_characters_come_through() -> None:
    text = "a".join(NONCHARACTERS[:-1])
    assert BACKEND.decode(BARE.encode(user(text))) == text
    with pytest.raises(RequestError) as refusal:
        BARE.encode(user("".join(NONCHARACTERS)))
    assert refusal.value.param == "messages"


def test_what_the_template_refuses_is_a_request_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", FAST)
    with pytest.raises(RequestError, match="roles must alternate"):
        template.encode(user("a"))


def test_a_template_cannot_leave_its_sandbox() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", FAST)
    with pytest.raises(RequestError):
        template.encode(user("a"))


def test_a_template_knows_the_special_tokens() -> None:
    template = ChatTemplate("{{ eos_token }}{{ messages[0]['content'] }}", FAST)
    assert template.encode(user("a"))[0] == BACKEND.token_to_id(tiny_models.END)


def test_a_tokenizer_without_a_template_has_none() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=BACKEND)
    assert ChatTemplate.of(bare) is None
    bare.chat_template = {"tool_use": "{{ tools }}"}
    assert ChatTemplate.of(bare) is None
    bare.chat_template["default"] = "{{ messages }}"
    assert ChatTemplate.of(bare) is not None
    assert ChatTemplate.of(FAST) is not None
