"""What all requests have in common: told fields, null as not sent, an error for everything else."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel

from finlora.api.protocol import ChatRequest, ClassifyRequest, CompletionRequest
from finlora.api.protocol.body import RequestBody
from finlora.api.protocol.messages import Message
from finlora.api.protocol.sampling import StreamOptions
from finlora.api.protocol.structured import JSONSchemaFormat, ResponseFormat, StructuredOutputs
from finlora.api.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from finlora.errors import RequestError

VALID: dict[type[RequestBody], dict[str, Any]] = {
    CompletionRequest: {"model": "news"},
    ChatRequest: {"model": "news", "messages": [{"role": "user", "content": "a"}]},
    ClassifyRequest: {"model": "news", "input": "a"},
    TokenizeRequest: {"prompt": "a"},
    DetokenizeRequest: {"tokens": [1]},
}
PARTS: tuple[type[BaseModel], ...] = (
    Message,
    StreamOptions,
    StructuredOutputs,
    ResponseFormat,
    JSONSchemaFormat,
)
PATHS: dict[type[RequestBody], str] = {
    ChatRequest: "/v1/chat/completions",
    ClassifyRequest: "/v1/classify",
    TokenizeRequest: "/tokenize",
    DetokenizeRequest: "/detokenize",
}


def all_fields() -> Iterator[tuple[type[BaseModel], str]]:
    models: list[type[BaseModel]] = [*VALID, *PARTS]
    for model in models:
        yield from ((model, name) for name in model.model_fields)


@pytest.mark.parametrize(("model", "name"), list(all_fields()))
def test_every_field_says_what_it_is_for(model: type[BaseModel], name: str) -> None:
    assert model.model_fields[name].description


@pytest.mark.parametrize("model", VALID)
def test_null_is_the_default(model: type[RequestBody]) -> None:
    nulls = dict.fromkeys(model.model_fields.keys() - VALID[model].keys())
    sent = model.from_json(json.dumps(nulls | VALID[model]).encode())
    assert sent == model.from_json(json.dumps(VALID[model]).encode())


@pytest.mark.parametrize("model", VALID)
def test_an_unknown_field_is_named(model: type[RequestBody]) -> None:
    with pytest.raises(RequestError) as refusal:
        model.from_json(json.dumps(VALID[model] | {"surprise": 1}).encode())
    assert refusal.value.param == "surprise"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def bodies(model: type[RequestBody]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=8)
    return st.dictionaries(names, values, max_size=4).map(lambda fields: VALID[model] | fields)


@given(st.data())
@hypothesis_settings(deadline=None, max_examples=40)
def test_any_object_is_a_request_or_an_error(data: st.DataObject) -> None:
    for model in VALID:
        body = json.dumps(data.draw(bodies(model))).encode()
        with contextlib.suppress(RequestError):
            assert isinstance(model.from_json(body), model)


@given(st.data())
@hypothesis_settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_is_an_internal_error(http: httpx.Client, data: st.DataObject) -> None:
    for model, path in PATHS.items():
        fields = {"max_tokens": 1} if model is ChatRequest else {}
        body = fields | data.draw(bodies(model))
        response = http.post(path, content=json.dumps(body).encode())
        assert response.status_code in (200, 400, 404)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
