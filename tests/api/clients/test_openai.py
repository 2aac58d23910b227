"""The openai package beyond single answers: asyncio, retries, timeouts, keys, request ids."""

import asyncio
import subprocess
import sys
import time
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from finlora.config import Settings
from tests.api.clients.conftest import example, ours
from tests.api.live import MAX_MODEL_LEN, LiveServer, serving

PROMPT = "The bank raised its outlook after"
MESSAGES: list[Any] = [{"role": "user", "content": "Shares fell 4.2 percent."}]
GREEDY: dict[str, Any] = {"model": "news", "temperature": 0, "max_tokens": 12}
LONG: dict[str, Any] = {
    "model": "news",
    "prompt": "a",
    "max_tokens": MAX_MODEL_LEN - 10,
    "extra_body": {"ignore_eos": True},
}


def test_asyncio_gives_the_same(client: openai.OpenAI, server: LiveServer) -> None:
    async def ask() -> tuple[str, str, str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as other:
            plain = await other.completions.create(prompt=PROMPT, stream=True, **GREEDY)
            chat = await other.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
            whole = await other.chat.completions.create(messages=MESSAGES, **GREEDY)
            return (
                "".join([part.choices[0].text async for part in plain]),
                "".join([part.choices[0].delta.content or "" async for part in chat]),
                whole.choices[0].message.content or "",
            )

    plain = client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    chat = client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content
    assert asyncio.run(ask()) == (plain, chat, chat)


def test_the_stream_helper_puts_a_chat_together(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content
    # The helper raises when an answer was cut.
    fields = {"messages": MESSAGES, "logprobs": True, "stop": (text or "")[8:10], **GREEDY}
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.stream(**fields) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs is not None
    assert whole.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content


def test_an_abandoned_stream_ends_its_request(client: openai.OpenAI, server: LiveServer) -> None:
    with client.completions.create(stream=True, **LONG) as stream:
        next(stream)
    server.wait_until_idle()


def test_request_ids_are_where_the_package_looks(client: openai.OpenAI) -> None:
    header = {"X-Request-Id": "mine"}
    raw = client.completions.with_raw_response.create(prompt=PROMPT, extra_headers=header, **GREEDY)
    assert raw.request_id == raw.parse()._request_id == "mine"
    with client.chat.completions.with_streaming_response.create(
        messages=MESSAGES, extra_headers=header, **GREEDY
    ) as streamed:
        assert streamed.request_id == "mine"
        assert streamed.parse().choices[0].message.content
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("nobody", extra_headers=header)
    assert missing.value.request_id == "mine"


def test_a_full_server_is_asked_again_when_it_said_so(
    client: openai.OpenAI, server: LiveServer
) -> None:
    """The client waits for as long as Retry-After says, and its second attempt is answered."""
    hog = client.completions.create(n=128, stream=True, **LONG)
    next(hog)
    answers: list[tuple[float, Any]] = []
    attempts: list[tuple[float, str]] = []

    def on_request(request: Any) -> None:
        attempts.append((time.monotonic(), request.headers["x-stainless-retry-count"]))

    def on_response(response: Any) -> None:
        answers.append((time.monotonic(), response))
        hog.close()

    hooks: Any = {"request": [on_request], "response": [on_response]}
    with (
        openai.DefaultHttpxClient(event_hooks=hooks) as transport,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=10, http_client=transport
        ) as patient,
    ):
        assert patient.completions.create(prompt=PROMPT, **GREEDY).choices[0].text
    statuses = [answer.status_code for _, answer in answers]
    assert statuses == [503] * (len(answers) - 1) + [200]
    assert len(answers) > 1
    assert [count for _, count in attempts] == [str(number) for number in range(len(attempts))]
    refused_at, refusal = answers[0]
    assert attempts[1][0] - refused_at >= float(refusal.headers["Retry-After"]) >= 1


def test_an_error_that_asking_again_cannot_mend_is_not_repeated(server: LiveServer) -> None:
    attempts: list[Any] = []
    hooks: Any = {"request": [attempts.append]}
    with (
        openai.DefaultHttpxClient(event_hooks=hooks) as transport,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=5, http_client=transport
        ) as client,
    ):
        for fields in ({"model": "nobody"}, {"temperature": 3}):
            with pytest.raises(openai.APIStatusError):
                client.completions.create(prompt="a", **(GREEDY | fields))
    assert len(attempts) == 2


def test_without_retries_a_full_server_is_an_error_with_its_code(client: openai.OpenAI) -> None:
    with client.completions.create(n=128, stream=True, **LONG) as hog:
        next(hog)
        with pytest.raises(openai.InternalServerError) as full:
            client.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert (full.value.status_code, full.value.code) == (503, "overloaded")


def test_a_client_that_waits_no_longer_ends_its_request(
    client: openai.OpenAI, server: LiveServer
) -> None:
    client.models.list()  # the connection stands
    hasty = client.with_options(timeout=openai.Timeout(60, read=0.001))
    with pytest.raises(openai.APITimeoutError):
        hasty.completions.create(n=64, **LONG)
    server.wait_until_idle()


def test_keys_are_the_packages_own(settings: Settings) -> None:
    locked = settings.model_copy(update={"api_key": SecretStr("secret")})
    with serving(locked) as server:
        url = f"{server.url}/v1"
        with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                stranger.chat.completions.create(messages=MESSAGES, **GREEDY)
            assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as known:
            assert known.chat.completions.create(messages=MESSAGES, **GREEDY).choices


def test_the_documented_example(server: LiveServer) -> None:
    code = ours(example("python", "from openai import OpenAI"), server.url)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
