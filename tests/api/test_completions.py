"""Completions through the openai package: every parameter, one answer."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests import tiny_models
from tests.api.completions import PROMPT, TOKENIZER, text_of
from tests.api.live import MAX_MODEL_LEN, LiveServer


def test_the_answer_is_openais(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="news", prompt=PROMPT, temperature=0, user="me")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == "news"
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(TOKENIZER.encode(PROMPT).ids)
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16
    assert answer.usage.prompt_tokens_details is not None


def test_metadata_is_taken_and_bounded(http: httpx.Client) -> None:
    body = {"model": "news", "prompt": PROMPT, "max_tokens": 1, "metadata": {"desk": "rates"}}
    assert http.post("/v1/completions", json=body).status_code == 200
    too_much = http.post("/v1/completions", json=body | {"metadata": {"desk": "x" * 513}})
    assert too_much.status_code == 400
    assert too_much.json()["error"]["param"] == "metadata"


def test_each_model_answers_its_own_way(client: openai.OpenAI) -> None:
    answers = {model: text_of(client, model) for model in ("tiny-llama", "news", "tweets")}
    assert len(set(answers.values())) == 3


def test_the_fingerprint_tells_base_and_adapter(client: openai.OpenAI, server: LiveServer) -> None:
    base = server.state.engine.spec.fingerprint[:12]
    digest = server.state.registry.resolve("news").digest
    fingerprints = [
        client.completions.create(model=model, prompt="a", max_tokens=1).system_fingerprint
        for model in ("tiny-llama", "news", f"news@{digest[:8]}")
    ]
    assert fingerprints == [f"{base}-base", f"{base}-{digest[:12]}", f"{base}-{digest[:12]}"]


def test_token_ids_are_as_good_as_text(client: openai.OpenAI) -> None:
    token_ids = TOKENIZER.encode(PROMPT).ids
    assert text_of(client, "news", prompt=token_ids) == text_of(client, "news")


def test_an_empty_prompt_is_an_empty_document(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "news", "temperature": 0, "max_tokens": 5}
    # The package insists on a prompt; null is one that was not sent.
    absent = client.completions.create(prompt=None, **fields).choices[0]
    empty, _ = client.completions.create(prompt=["", "a"], echo=True, logprobs=0, **fields).choices
    assert empty.text == absent.text
    assert empty.logprobs is not None
    assert empty.logprobs.token_logprobs is not None
    assert empty.logprobs.token_logprobs[0] is None
    assert empty.logprobs.text_offset is not None
    assert empty.logprobs.text_offset[:2] == [0, 0]


def test_choices_of_many_prompts_are_numbered_prompt_by_prompt(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "Shares fell"]
    fields: dict[str, Any] = {"model": "news", "max_tokens": 8, "seed": 5, "temperature": 1}
    together = client.completions.create(prompt=prompts, n=2, **fields)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    fields["seed"] = 6
    alone = client.completions.create(prompt=prompts[1], **fields)
    assert together.choices[3].text == alone.choices[0].text


def test_a_seed_draws_the_same_again_and_the_next_seed_something_else(
    client: openai.OpenAI,
) -> None:
    first, again, other = (
        text_of(client, "news", temperature=1.5, seed=seed) for seed in (-7, -7, 8)
    )
    assert first == again != other


def test_many_at_once_get_what_each_gets_alone(client: openai.OpenAI, server: LiveServer) -> None:
    models = ("tiny-llama", "news", "tweets")
    requests: list[dict[str, Any]] = [
        {
            "model": models[i % 3],
            "prompt": PROMPT[: 5 + i],
            "max_tokens": 10,
            "temperature": 0.8,
            "seed": i,
        }
        for i in range(24)
    ]

    async def all_at_once() -> list[str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as many:
            answers = await asyncio.gather(*(many.completions.create(**r) for r in requests))
        return [answer.choices[0].text for answer in answers]

    alone = [client.completions.create(**request).choices[0].text for request in requests]
    assert asyncio.run(all_at_once()) == alone


def test_best_of_returns_the_likeliest(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "news",
        "prompt": PROMPT,
        "max_tokens": 6,
        "temperature": 2,
        "seed": 1,
        "logprobs": 0,
    }
    best = client.completions.create(n=1, best_of=5, **fields)
    every = client.completions.create(n=5, **fields)

    def mean(choice: Any) -> float:
        values: list[float] = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    likeliest = max(every.choices, key=mean)
    assert [choice.text for choice in best.choices] == [likeliest.text]
    assert best.choices[0].index == 0
    assert best.usage is not None
    assert best.usage.completion_tokens == 30


def test_best_of_without_logprobs_shows_none(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="news", prompt="a", max_tokens=3, best_of=3)
    assert answer.choices[0].logprobs is None


def test_text_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    whole = text_of(client, "news", max_tokens=20)
    stop = whole[6:9]
    answer = client.completions.create(
        model="news", prompt=PROMPT, max_tokens=20, temperature=0, stop=["\0", stop], logprobs=1
    )
    choice = answer.choices[0]
    assert choice.text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert all(offset < len(choice.text) for offset in choice.logprobs.text_offset)


def test_a_stop_token_ends_the_text(client: openai.OpenAI) -> None:
    token_id = TOKENIZER.encode("a").ids[0]
    answer = client.completions.create(
        model="tiny-llama",
        prompt=PROMPT,
        temperature=0,
        logit_bias={str(token_id): 100},
        extra_body={"stop_token_ids": [token_id]},
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")


def test_logit_bias_decides(client: openai.OpenAI) -> None:
    token_id = TOKENIZER.encode("a").ids[0]
    text = text_of(client, "news", max_tokens=5, logit_bias={str(token_id): 100})
    assert text == "aaaaa"


def test_the_end_of_sequence_can_be_ignored(client: openai.OpenAI) -> None:
    end = TOKENIZER.token_to_id(tiny_models.END)
    fields: dict[str, Any] = {"logit_bias": {str(end): 100}, "temperature": 0, "max_tokens": 5}
    ended = client.completions.create(model="news", prompt="a", **fields)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    ignoring = client.completions.create(
        model="news", prompt="a", extra_body={"ignore_eos": True}, **fields
    )
    assert ignoring.choices[0].finish_reason == "length"
    assert ignoring.usage is not None
    assert ignoring.usage.completion_tokens == 5


@pytest.mark.parametrize("limit", [{"top_p": 0}, {"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}])
def test_the_narrowest_draw_takes_the_likeliest(
    client: openai.OpenAI, limit: dict[str, Any]
) -> None:
    answer = client.completions.create(
        model="news", prompt=PROMPT, temperature=2, logprobs=1, extra_body=limit
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    likeliest = [max(top.values()) for top in logprobs.top_logprobs]
    assert logprobs.token_logprobs == likeliest


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 50.0}},
    ],
)
def test_penalties_break_a_repetition(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    bias = {str(token_id): 6 for token_id in TOKENIZER.encode("aZ").ids}
    free = text_of(client, "news", logit_bias=bias, max_tokens=40)
    assert text_of(client, "news", logit_bias=bias, max_tokens=40, **fields) != free


def test_without_a_prompt_a_document_begins(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="news", prompt=None, max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1


def test_a_salt_changes_no_answer(client: openai.OpenAI) -> None:
    assert text_of(client, "news", extra_body={"cache_salt": "mine"}) == text_of(client, "news")


def test_the_whole_context_can_be_used_but_no_more(http: httpx.Client) -> None:
    body = {"model": "news", "prompt": [5] * (MAX_MODEL_LEN - 1), "max_tokens": 1}
    assert http.post("/v1/completions", json=body).status_code == 200
    answer = http.post("/v1/completions", json=body | {"max_tokens": 2})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
