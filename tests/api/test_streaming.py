"""Streams: the same text as without, whole characters, usage, and errors on the way."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion

from finlora.api.sse import DONE
from finlora.config import Settings
from tests.api.live import serving

PROMPT = "Zürich's café said"
EXACT = ("tokens", "text_offset")  # columns of log-probabilities


def joined(chunks: list[Completion]) -> dict[int, dict[str, Any]]:
    """Each choice of a stream, put together."""
    choices: dict[int, dict[str, Any]] = {}
    for part in (part for chunk in chunks for part in chunk.choices):
        whole = choices.setdefault(
            part.index, {"text": "", "logprobs": None, "finish_reason": None}
        )
        assert whole["finish_reason"] is None
        whole["text"] += part.text
        whole["finish_reason"] = part.finish_reason
        if part.logprobs is not None:
            new = part.logprobs.model_dump()
            before = whole["logprobs"] or {column: [] for column in new}
            whole["logprobs"] = {column: before[column] + new[column] for column in new}
    return choices


def unstreamed(answer: Completion) -> dict[int, dict[str, Any]]:
    return {
        choice.index: {
            "text": choice.text,
            "logprobs": None if choice.logprobs is None else choice.logprobs.model_dump(),
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.choices
    }


def assert_alike(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]]) -> None:
    """Last bits of log-probabilities depend on how many rows happen to meet in a step."""
    assert found.keys() == expected.keys()
    for index, choice in expected.items():
        ours, theirs = found[index]["logprobs"] or {}, choice["logprobs"] or {}
        assert found[index] | {"logprobs": None} == choice | {"logprobs": None}
        assert ours.keys() == theirs.keys()
        assert [ours.get(column) for column in EXACT] == [theirs.get(column) for column in EXACT]
        for one, other in zip(numbers(ours), numbers(theirs), strict=True):
            assert one == pytest.approx(other, abs=1e-3)


def numbers(logprobs: dict[str, list[Any]]) -> Iterator[Any]:
    """Of the chosen tokens, then of the likeliest at each place; None where there are none."""
    yield from logprobs.get("token_logprobs") or ()
    yield from logprobs.get("top_logprobs") or ()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 2},
        {"n": 3},
        {"prompt": [PROMPT, "The bank"], "n": 2, "logprobs": 0},
        {"stop": ["e", "or", " in"], "logprobs": 1},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ],
)
def test_a_stream_is_the_answer_in_parts(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    for seed in (1, 50, 99):
        body: dict[str, Any] = {
            "model": "news",
            "prompt": PROMPT,
            "max_tokens": 40,
            "temperature": 1.5,
            "seed": seed,
            **fields,
        }
        answer = client.completions.create(**body)
        chunks = list(client.completions.create(stream=True, **body))
        assert_alike(joined(chunks), unstreamed(answer))
        heads = {(c.id, c.created, c.model, c.system_fingerprint, c.object) for c in chunks}
        assert len(heads) == 1


def test_stop_strings_never_leak(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "news",
        "prompt": PROMPT,
        "max_tokens": 60,
        "extra_body": {"ignore_eos": True},
    }
    for seed in range(12):
        whole = client.completions.create(seed=seed, **fields).choices[0].text
        stop = whole[20:26]
        chunks = client.completions.create(seed=seed, stop=stop, stream=True, logprobs=0, **fields)
        choice = joined(list(chunks))[0]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"
        assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


def frames(http: httpx.Client, **fields: Any) -> Iterator[bytes]:
    body = {"model": "news", "prompt": PROMPT, "stream": True, **fields}
    with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        whole = b"".join(response.iter_bytes())
    assert whole.endswith(b"\n\n")
    yield from (frame + b"\n\n" for frame in whole.split(b"\n\n")[:-1])


def test_frames_are_whole_utf8_and_end_with_done(http: httpx.Client) -> None:
    *parts, last = frames(http, max_tokens=60, temperature=2, seed=3)
    assert last == DONE
    for part in parts:
        assert json.loads(part.removeprefix(b"data: "))["choices"]


def test_usage_comes_last_when_asked_for(client: openai.OpenAI) -> None:
    *parts, last = client.completions.create(
        model="news",
        prompt=[PROMPT, PROMPT],
        n=2,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    assert all(part.usage is None and part.choices for part in parts)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 20
    assert last.usage.total_tokens == last.usage.prompt_tokens + 20


def test_usage_grows_along_when_asked_for(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    *parts, last = client.completions.create(
        model="news", prompt=[PROMPT, "The"], n=2, max_tokens=9, stream=True, stream_options=options
    )
    usages = [part.usage for part in parts]
    counts = [usage.completion_tokens for usage in usages if usage is not None]
    assert len(counts) == len(parts)
    assert counts == sorted(counts)
    assert all(usage.total_tokens > usage.prompt_tokens > 0 for usage in usages if usage)
    assert usages[-1] == last.usage


def test_usage_stays_out_when_not_asked_for(http: httpx.Client) -> None:
    assert not any(b"usage" in frame for frame in frames(http))


def test_choices_of_one_stream_come_side_by_side(client: openai.OpenAI) -> None:
    chunks = client.completions.create(
        model="news",
        prompt=PROMPT,
        n=4,
        max_tokens=30,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    indices = [choice.index for chunk in chunks for choice in chunk.choices]
    assert indices != sorted(indices)
    assert set(indices) == {0, 1, 2, 3}


def test_an_error_before_the_first_token_has_its_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="news", prompt="a" * 5000, max_tokens=5, stream=True)
    assert raised.value.code == "context_length_exceeded"


def test_an_error_on_the_way_is_told_in_the_stream(settings: Settings) -> None:
    at_once = settings.model_copy(update={"shutdown_seconds": 0})
    with (
        serving(at_once) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        stream = client.completions.create(
            model="news",
            prompt=PROMPT,
            max_tokens=200,
            n=16,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        server.drain()
        with pytest.raises(openai.APIError) as raised:
            list(stream)
        assert raised.value.code == "engine_not_ready"
