"""langchain-openai gets what the openai package gets."""

import json
from typing import Any

import openai

from tests.api.clients.conftest import FOLDER, Run, example, ours
from tests.api.live import LiveServer

PROMPT = "Shares fell 4.2 percent."


def chat(client: openai.OpenAI, prompt: str) -> Any:
    messages: list[Any] = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(
        model="news", messages=messages, temperature=0, max_completion_tokens=40
    )


def complete(client: openai.OpenAI, prompt: str) -> Any:
    return client.completions.create(model="news", prompt=prompt, temperature=0, max_tokens=8)


def test_all_calls(client: openai.OpenAI, server: LiveServer, run: Run) -> None:
    script = str(FOLDER / "langchain_answers.py")
    answers = json.loads(run("python", script, f"{server.url}/v1", "news", PROMPT))

    whole, short = chat(client, PROMPT), chat(client, PROMPT[:5])
    text = whole.choices[0].message.content
    found = answers["chat"]
    assert found["invoke"] == "".join(found["stream"]) == text
    assert found["batch"] == [text, short.choices[0].message.content, text]
    assert found["finish_reason"] == "length"
    assert len(found["tokens"]) == found["usage"]["output_tokens"] == 40
    assert [usage["total_tokens"] for usage in found["stream_usage"]] == [whole.usage.total_tokens]
    assert found["usage"]["input_tokens"] == whole.usage.prompt_tokens
    assert found["structured"]["sentiment"] in ("negative", "neutral", "positive")
    assert found["structured"]["strength"] in range(1, 6)
    assert found["structured_stream"][-1] == found["structured"]

    whole, short = complete(client, PROMPT), complete(client, PROMPT[:5])
    found = answers["completions"]
    assert found["invoke"] == "".join(found["stream"]) == whole.choices[0].text
    assert found["batch"] == [whole.choices[0].text, short.choices[0].text]
    assert found["usage"]["total_tokens"] == whole.usage.total_tokens + short.usage.total_tokens


def test_the_documented_example(server: LiveServer, run: Run) -> None:
    code = ours(example("python", "langchain_openai"), server.url)
    assert "sentiment=" in run("python", "-c", code)
