"""What a body may hold: every field bounded, every error named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finlora.api.protocol import CompletionRequest
from finlora.api.protocol.fields import MAX_LOGIT_BIASES
from finlora.errors import RequestError


def parse(**fields: Any) -> CompletionRequest:
    return CompletionRequest.from_json(json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("sent", "prompts"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["one", "two"], ["one", "two"]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
        (None, None),
    ],
)
def test_every_form_of_prompt_becomes_a_list(sent: Any, prompts: Any) -> None:
    assert parse(prompt=sent).prompt == prompts


def test_null_is_the_default() -> None:
    fields = CompletionRequest.model_fields.keys() - {"model"}
    assert parse(**dict.fromkeys(fields)) == parse()


def test_one_stop_string_is_a_list_of_one() -> None:
    assert parse(stop="\n").stop == ["\n"]


def test_keys_of_logit_bias_are_token_ids() -> None:
    assert parse(logit_bias={"12": -100, "7": 0.5}).logit_bias == {12: -100.0, 7: 0.5}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"guided_json": {"const": "\ud800"}}, "guided_json"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 65, "prompt": ["a", "b"]}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 513}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"echo": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"guided_choice": ["yes", 1]}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"guided_choice": ["yes", "yes"]}, "guided_choice"),
        ({"guided_choice": ["x" * 513]}, "guided_choice"),
        ({"guided_choice": [str(i) for i in range(257)]}, "guided_choice"),
        ({"guided_choice": ["yes"], "structured_outputs": {"choice": ["yes"]}}, "guided_choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"choice": None}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["yes"], "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["yes", "yes"]}}, "structured_outputs"),
        ({"guided_choice": ["yes"], "stop": "y"}, "stop"),
        ({"guided_choice": ["yes"], "stop_token_ids": [5]}, "stop_token_ids"),
        ({"guided_choice": ["yes"], "ignore_eos": True}, "ignore_eos"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(MAX_LOGIT_BIASES + 1)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"suffix": "end"}, "suffix"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"user": 5}, "user"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"ignore_eos": "no"}, "ignore_eos"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"max_token": 5}, "max_token"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse(**fields)
    assert raised.value.param == param
    assert param in str(raised.value)


def test_the_model_must_be_given() -> None:
    with pytest.raises(RequestError) as raised:
        CompletionRequest.from_json(b'{"prompt": "a"}')
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b'"temperature": NaN', "temperature"),
        (b'"top_p": -Infinity', "top_p"),
        (b'"presence_penalty": 1e999', "presence_penalty"),
        (b'"logit_bias": {"5": Infinity}', "logit_bias"),
        (b'"stop": ["\\ud800"]', "stop"),
        (b'"surprise": NaN', "surprise"),
    ],
)
def test_the_field_with_what_json_cannot_hold_is_named(fields: bytes, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        CompletionRequest.from_json(b'{"model": "m", ' + fields + b"}")
    assert raised.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": Infinity}',
        b'{"model": "m", "temperature": -Infinity}',
        b'{"model": "m", "temperature": 1e999}',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        json.dumps({f"field{i}": 1 for i in range(100)}).encode(),
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        CompletionRequest.from_json(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(sorted(CompletionRequest.model_fields)) | st.text(), json_values
    )
)
def test_any_object_is_a_request_or_an_error_with_a_reason(fields: dict[str, Any]) -> None:
    try:
        request = CompletionRequest.from_json(json.dumps(fields).encode())
    except RequestError:
        return
    assert request.model == fields["model"]


@given(st.binary())
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    with pytest.raises(RequestError):
        CompletionRequest.from_json(body)
