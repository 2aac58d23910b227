"""Chats through the openai package: every parameter, one answer or a stream."""

import math
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests import tiny_models
from tests.api.live import MAX_MODEL_LEN, LiveServer

FAST = tiny_models.tokenizer()
TOKENIZER = FAST.backend_tokenizer
SYSTEM = {"role": "system", "content": "You read news."}
USER = {"role": "user", "content": "Shares fell 4.2 percent. 🎉"}
MESSAGES: list[Any] = [SYSTEM, USER]
LABELS = ["negative", "neutral", "positive", "positive outlook"]


def chat(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    fields = {"model": "news", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}
    answer: ChatCompletion = client.chat.completions.create(**fields)
    return answer


def chunks_of(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    fields = {"model": "news", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}
    return list(client.chat.completions.create(stream=True, **fields))


def prompt_ids(messages: list[Any]) -> list[int]:
    """What transformers makes of the chat."""
    ids: Any = FAST.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)


def test_the_answer_is_openais(client: openai.OpenAI) -> None:
    answer = chat(client, user="me", metadata={"a": "b"}, store=False)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "news"
    (choice,) = answer.choices
    assert choice.index == 0
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt_ids(MESSAGES))
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens_details is not None


def test_a_chat_is_the_completion_of_its_rendered_text(client: openai.OpenAI) -> None:
    plain = client.completions.create(
        model="news", prompt=prompt_ids(MESSAGES), temperature=0, max_tokens=12
    )
    assert chat(client).choices[0].message.content == plain.choices[0].text


def test_each_model_answers_its_own_way_under_all_its_names(
    client: openai.OpenAI, server: LiveServer
) -> None:
    digest = server.state.registry.resolve("news").digest[:12]
    answers = {
        model: chat(client, model=model).choices[0].message.content
        for model in (
            "tiny-llama", "news", "tweets", "tiny-llama:news", f"news@{digest}",
            f"tiny-llama:news@{digest}",
        )
    }  # fmt: skip
    assert len({answers[model] for model in ("tiny-llama", "news", "tweets")}) == 3
    assert len({text for model, text in answers.items() if "news" in model}) == 1


def test_parts_are_one_text_and_a_developer_is_the_system(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Shares fell "}, {"type": "text", "text": "4.2 percent. 🎉"}]
    messages = [
        {"role": "developer", "content": SYSTEM["content"]},
        {"role": "user", "content": parts},
    ]
    assert chat(client, messages=messages).choices == chat(client).choices


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = chat(client).choices[0].message
    again = chat(client, messages=[*MESSAGES, first, {"role": "user", "content": "And now?"}])
    assert again.usage is not None
    assert again.usage.prompt_tokens > len(prompt_ids(MESSAGES))


def test_the_older_name_of_the_limit_says_the_same(client: openai.OpenAI) -> None:
    newer = chat(client, max_tokens=None, max_completion_tokens=5)
    older = chat(client, max_tokens=5)
    assert newer.choices == older.choices
    assert newer.choices[0].finish_reason == "length"
    assert newer.usage is not None
    assert newer.usage.completion_tokens == 5


def test_without_a_limit_the_answer_takes_what_fits(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.total_tokens == MAX_MODEL_LEN
    assert answer.choices[0].finish_reason == "length"


def test_choices_differ_by_their_seed(client: openai.OpenAI) -> None:
    three = chat(client, n=3, seed=7, temperature=1.5)
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) == 3
    assert chat(client, seed=8, temperature=1.5).choices[0].message.content == texts[1]


def test_log_probabilities_are_those_of_completions(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "news", "temperature": 0, "max_tokens": 6}
    plain = client.completions.create(prompt=prompt_ids(MESSAGES), logprobs=3, **fields)
    columns = plain.choices[0].logprobs
    (choice,) = chat(client, max_tokens=6, logprobs=True, top_logprobs=3).choices
    assert columns is not None
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert [entry.token for entry in content] == columns.tokens
    assert [entry.logprob for entry in content] == columns.token_logprobs
    for entry in content:
        assert len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
    whole = b"".join(bytes(entry.bytes or []) for entry in content)
    assert whole.decode(errors="replace") == choice.message.content


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 3},
        {"stop": ["e", "or", " in"], "logprobs": True},
        {"extra_body": {"ignore_eos": True}},
    ],
)
def test_a_stream_is_the_answer_in_parts(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    for seed in (1, 2):
        fields = {"temperature": 1.5, "seed": seed, "max_tokens": 40, **fields}
        answer = chat(client, **fields)
        chunks = chunks_of(client, **fields)
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
        for whole in answer.choices:
            parts = [p for chunk in chunks for p in chunk.choices if p.index == whole.index]
            assert parts[0].delta.role == "assistant"
            assert all(part.delta.role is None for part in parts[1:])
            assert "".join(part.delta.content or "" for part in parts) == whole.message.content
            assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
            assert parts[-1].finish_reason == whole.finish_reason
            assert parts[-1].delta.content is None
            shown = [e for p in parts if p.logprobs for e in p.logprobs.content or []]
            expected = whole.logprobs.content if whole.logprobs else []
            assert shown == expected


def test_usage_comes_last_when_asked_for(client: openai.OpenAI) -> None:
    *parts, last = chunks_of(client, n=2, max_tokens=4, stream_options={"include_usage": True})
    assert all(part.usage is None and part.choices for part in parts)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 8


def test_labels_are_answered_and_scored_as_in_completions(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"choice": LABELS}}
    plain = client.completions.create(
        model="news", prompt=prompt_ids(MESSAGES), temperature=0, logprobs=0, extra_body=extra
    )
    (choice,) = chat(client, max_tokens=None, logprobs=True, extra_body=extra).choices
    assert choice.message.content == plain.choices[0].text
    assert choice.logprobs is not None
    scores: dict[str, float] = choice.logprobs.choice_logprobs  # type: ignore[attr-defined]
    assert scores == plain.choices[0].logprobs.choice_logprobs  # type: ignore[union-attr]
    assert math.fsum(map(math.exp, scores.values())) == pytest.approx(1)
    (older,) = chat(client, max_tokens=None, extra_body={"guided_choice": LABELS}).choices
    assert older.message.content == choice.message.content


def test_penalties_biases_and_stop_tokens_work(client: openai.OpenAI) -> None:
    token_id = TOKENIZER.encode("a").ids[0]
    biased = chat(client, max_tokens=3, logit_bias={str(token_id): 100})
    assert biased.choices[0].message.content == "aaa"
    stopped = chat(
        client, logit_bias={str(token_id): 100}, extra_body={"stop_token_ids": [token_id]}
    )
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("", "stop")
    bias = {str(i): 6 for i in TOKENIZER.encode("aZ").ids}
    free = chat(client, logit_bias=bias, max_tokens=30)
    held = chat(client, logit_bias=bias, max_tokens=30, presence_penalty=2, frequency_penalty=2)
    assert free.choices != held.choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": []}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"store": True}, "store"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": MAX_MODEL_LEN}, "messages"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": "a"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 20_000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "Zürich " * 200}]}, "messages"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"guided_choice": LABELS, "max_tokens": 1}, "max_tokens"),
        ({"guided_choice": LABELS, "max_completion_tokens": 1}, "max_completion_tokens"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "news", "messages": [USER], **fields}
    response = http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert param in error["message"]


def test_an_image_is_told_why(http: httpx.Client) -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    body = {"model": "news", "messages": [{"role": "user", "content": content}]}
    message = http.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert "image_url" in message
    assert "text only" in message


@pytest.mark.parametrize("kind", ["5", "null", "[" * 1000 + "]" * 1000])
def test_a_part_without_a_name_for_its_type_is_refused(http: httpx.Client, kind: str) -> None:
    part = f'{{"model": "news", "messages": [{{"role": "user", "content": [{{"type": {kind}}}]}}]}}'
    response = http.post("/v1/chat/completions", content=part)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert "`type`" in error["message"]


def test_a_base_without_a_chat_template_says_so(
    http: httpx.Client, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.state.engine, "chat_template", None)
        for path in ("/v1/chat/completions", "/tokenize"):
            response = http.post(path, json={"model": "news", "messages": [USER]})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "model"
            assert "chat template" in response.json()["error"]["message"]
        facts = http.get("/tokenizer_info").json()
    assert facts["chat_template"] is None


def test_harmless_fields_are_accepted(http: httpx.Client) -> None:
    body = {
        "model": "news",
        "messages": [USER | {"name": "me"}],
        "max_tokens": 1,
        "store": False,
        "modalities": ["text"],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "response_format": {"type": "text"},
        "tools": None,
    }
    assert http.post("/v1/chat/completions", json=body).status_code == 200
