"""Answers in a form that the client demands, through the openai package."""

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import jsonschema
import openai
import psutil
import pytest
from pydantic import BaseModel, Field

from finlora.api.grammars import MAX_COMPILING, MAX_GRAMMARS, GrammarCache
from finlora.config import Settings
from finlora.engine.constraints import Grammar, GrammarKind
from finlora.engine.grammar_process import MODULE
from finlora.errors import EngineOverloadedError, EngineStoppedError, InvalidSamplingParamsError
from tests.api.live import DEADLINE_SECONDS, LiveServer, serving
from tests.engine.test_guidance import COMPILER, HOSTILE, SCHEMA

PROMPT = "Shares fell 4.2 percent. "
PATTERN = "[A-Z]{2,4}: -?[0-9]{1,3}\\.[0-9]%"
LARK = 'start: "up" | "down" " by " NUMBER "%"\nNUMBER: /[1-9][0-9]{0,2}/'
LARK_PATTERN = "up|down by [1-9][0-9]{0,2}%"
# JSON is read up to 1,024 levels and written up to 254.
DEEP = json.loads('{"not":' * 300 + "{}" + "}" * 300)
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "news", "schema": SCHEMA}}


def complete(client: openai.OpenAI, **extra: Any) -> list[str]:
    answer = client.completions.create(
        model="news", prompt=PROMPT, max_tokens=150, temperature=1.5, seed=1, n=3, extra_body=extra
    )
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    return [choice.text for choice in answer.choices]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"max_tokens": 150, "temperature": 1.5, "seed": 1, **fields}
    return client.chat.completions.create(model="news", messages=MESSAGES, **fields)


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [("regex", PATTERN, PATTERN), ("grammar", LARK, LARK_PATTERN)],
)
def test_text_has_the_form_under_both_names(
    client: openai.OpenAI, kind: str, source: str, pattern: str
) -> None:
    newer = complete(client, structured_outputs={kind: source})
    older = complete(client, **{f"guided_{kind}": source})
    assert newer == older
    assert len({*newer}) > 1
    assert all(re.fullmatch(pattern, text) for text in newer)


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_json_follows_its_schema_under_all_names(client: openai.OpenAI, schema: Any) -> None:
    newer = complete(client, structured_outputs={"json": schema})
    assert complete(client, guided_json=schema) == newer
    for text in newer:
        jsonschema.validate(json.loads(text), SCHEMA)
    for text in (
        choice.message.content for choice in chat(client, response_format=FORMAT, n=3).choices
    ):
        jsonschema.validate(json.loads(text), SCHEMA)


class News(BaseModel):
    """What is to be read from a text."""

    label: Literal["negative", "positive"]
    percent: float | None = Field(ge=-100, le=100)
    tickers: list[Literal["UBS", "SAP"]] = Field(max_length=2)


def test_a_model_class_comes_back_as_an_object(client: openai.OpenAI) -> None:
    for seed in range(3):
        answer = client.chat.completions.parse(
            model="news", messages=MESSAGES, response_format=News, seed=seed, temperature=1
        )
        assert isinstance(answer.choices[0].message.parsed, News)


def test_a_json_object_has_any_fields(client: openai.OpenAI) -> None:
    wanted = {"type": "json_object"}
    answers = [chat(client, response_format=wanted, seed=seed).choices[0] for seed in range(6)]
    whole = [json.loads(a.message.content) for a in answers if a.finish_reason == "stop"]
    assert all(isinstance(value, dict) for value in whole)
    assert all(answer.message.content.startswith("{") for answer in answers)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI, logprobs: bool) -> None:
    fields: dict[str, Any] = {"response_format": FORMAT, "n": 2, "logprobs": logprobs}
    whole = chat(client, **fields)
    parts = [choice for chunk in chat(client, stream=True, **fields) for choice in chunk.choices]
    for choice in whole.choices:
        own = [part for part in parts if part.index == choice.index]
        text = "".join(part.delta.content or "" for part in own)
        assert text == choice.message.content
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_limit_cuts_it(client: openai.OpenAI) -> None:
    choice = chat(client, response_format=FORMAT, max_tokens=4).choices[0]
    assert choice.finish_reason == "length"
    assert '{"label": "'.startswith(choice.message.content[:11])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a" * 4097}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_json": {"type": "surprise"}}, "guided_json"),
        ({"guided_json": {"enum": ["x" * 70_000]}}, "guided_json"),
        ({"guided_json": DEEP}, "guided_json"),
        ({"guided_grammar": "start: unknown"}, "guided_grammar"),
        ({"guided_grammar": HOSTILE}, "guided_grammar"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "((a{1,1000}){1,1000}){1,1000}", "temperature": 0}, "guided_regex"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "news", "prompt": PROMPT, "max_tokens": 200, "logit_bias": {"2": -100}}
    response = http.post("/v1/completions", json=body | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert param in error["message"]


@pytest.mark.parametrize("schema", [{"type": "surprise"}, DEEP])
def test_a_schema_of_a_chat_is_refused_by_name(http: httpx.Client, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "news", "messages": MESSAGES, "response_format": wanted}
    response = http.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")


def test_a_server_outlives_hostile_grammars(client: openai.OpenAI, server: LiveServer) -> None:
    for _ in range(2):
        with pytest.raises(openai.BadRequestError):
            complete(client, guided_grammar=HOSTILE)
    assert complete(client, guided_regex=PATTERN)


def checking_processes() -> set[psutil.Process]:
    children = psutil.Process().children()
    return {child for child in children if MODULE in child.cmdline()}


def test_a_server_takes_its_process_along(settings: Settings) -> None:
    before = checking_processes()
    with serving(settings) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            assert complete(client, guided_regex=PATTERN)
        (started,) = checking_processes() - before
        server.drain()
        server.drain()  # as a signal and the end of the application do
    assert psutil.wait_procs([started], timeout=60)[1] == []


class Compiler:
    """The real one, counted."""

    def __init__(self) -> None:
        self.num_compiled = 0
        self.num_closed = 0

    def compile(self, kind: GrammarKind, source: str) -> Grammar:
        self.num_compiled += 1
        return COMPILER.compile(kind, source)

    def close(self) -> None:
        self.num_closed += 1


def test_a_grammar_is_compiled_once() -> None:
    compiler = Compiler()

    async def ask() -> None:
        cache = GrammarCache(compiler.compile, compiler.close)
        first, second = await asyncio.gather(
            cache.get(GrammarKind.REGEX, "a"), cache.get(GrammarKind.REGEX, "a")
        )
        assert first is second is await cache.get(GrammarKind.REGEX, "a")
        assert compiler.num_compiled == 1
        with pytest.raises(InvalidSamplingParamsError):
            await cache.get(GrammarKind.REGEX, "(")
        assert cache.num_grammars == 1
        cache.close()

    asyncio.run(ask())


def test_the_latest_grammars_are_kept() -> None:
    compiler = Compiler()

    async def ask() -> None:
        cache = GrammarCache(compiler.compile, compiler.close)
        for i in range(MAX_GRAMMARS + 3):
            await cache.get(GrammarKind.REGEX, f"a{i}")
            await cache.get(GrammarKind.REGEX, "a0")
        assert cache.num_grammars == MAX_GRAMMARS
        assert compiler.num_compiled == MAX_GRAMMARS + 3
        cache.close()

    asyncio.run(ask())


def test_too_many_at_once_are_told_to_come_back() -> None:
    compiler = Compiler()

    async def ask() -> None:
        cache = GrammarCache(compiler.compile, compiler.close)
        many = [cache.get(GrammarKind.REGEX, f"a{i}") for i in range(MAX_COMPILING + 1)]
        results = await asyncio.gather(*many, return_exceptions=True)
        assert [type(r) for r in results if isinstance(r, Exception)] == [EngineOverloadedError]
        cache.close()

    asyncio.run(ask())


def test_what_waits_at_the_end_is_told_and_not_compiled() -> None:
    compiler = Compiler()
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def compile(kind: GrammarKind, source: str) -> Grammar:
        begun.set()
        go_on.wait(DEADLINE_SECONDS)
        return compiler.compile(kind, source)

    async def ask() -> None:
        cache = GrammarCache(compile, closed.set)
        waiting = [asyncio.create_task(cache.get(GrammarKind.REGEX, f"a{i}")) for i in range(3)]
        waiting.append(asyncio.create_task(cache.get(GrammarKind.REGEX, "a0")))
        await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        cache.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [EngineStoppedError] * 4
        go_on.set()
        assert cache.num_grammars == 0

    asyncio.run(ask())
    assert closed.wait(DEADLINE_SECONDS)  # behind all that was queued
    assert compiler.num_compiled == 1


def test_a_client_that_leaves_does_not_end_the_work_of_others() -> None:
    compiler = Compiler()

    async def ask() -> None:
        cache = GrammarCache(compiler.compile, compiler.close)
        leaving = asyncio.create_task(cache.get(GrammarKind.REGEX, "a"))
        staying = asyncio.create_task(cache.get(GrammarKind.REGEX, "a"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying
        assert leaving.cancelled()
        cache.close()

    asyncio.run(ask())
    assert compiler.num_compiled == 1


def test_a_request_that_waits_when_the_server_stops_is_answered(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(kind: GrammarKind, source: str) -> Grammar:
        begun.set()
        go_on.wait(DEADLINE_SECONDS)
        return COMPILER.compile(kind, source)

    body = {"model": "news", "prompt": PROMPT, "guided_regex": "a"}
    with serving(settings) as server, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(server.state.grammars, "_compile", hold)
        url = f"{server.url}/v1/completions"
        asked = pool.submit(httpx.post, url, json=body, timeout=DEADLINE_SECONDS)
        assert begun.wait(DEADLINE_SECONDS)
        server.drain()
        response = asked.result(DEADLINE_SECONDS)
        go_on.set()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_not_ready"
