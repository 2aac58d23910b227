import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from loadtest.peers.load import Load, Mix, Tally, bodies, main, measure, summarise
from loadtest.peers.process import free_port

MODELS = ("a0", "a1", "a2", "a3")


def sent(load: Load, count: int) -> list[dict[str, Any]]:
    return [json.loads(body) for body in bodies(load, [f"prompt {i}" for i in range(count)])]


def test_distinct_takes_the_adapters_in_turn() -> None:
    requests = sent(Load(MODELS), 6)
    assert [request["model"] for request in requests] == ["a0", "a1", "a2", "a3", "a0", "a1"]
    assert [request["prompt"] for request in requests] == [f"prompt {i}" for i in range(6)]
    assert all(request["ignore_eos"] and request["max_tokens"] == 3 for request in requests)


def test_zipf_halves_from_the_first_adapter_to_the_second_and_uniform_does_not() -> None:
    zipf = Counter(r["model"] for r in sent(Load(MODELS, mix=Mix.ZIPF), 4000))
    uniform = Counter(r["model"] for r in sent(Load(MODELS, mix=Mix.UNIFORM), 4000))
    assert 1.7 < zipf["a0"] / zipf["a1"] < 2.3
    assert 0.85 < uniform["a0"] / uniform["a3"] < 1.15


@pytest.mark.parametrize("mix", list(Mix))
def test_every_server_gets_the_same_requests(mix: Mix) -> None:
    assert sent(Load(MODELS, mix=mix), 50) == sent(Load(MODELS, mix=mix), 50)


def test_a_larger_exponent_gives_the_first_adapters_more() -> None:
    load = Load(MODELS, mix=Mix.ZIPF, zipf_exponent=2.0)
    asked = Counter(request["model"] for request in sent(load, 4000))
    assert 3.3 < asked["a0"] / asked["a1"] < 4.8


def test_a_choice_ends_by_itself() -> None:
    request = sent(Load(MODELS, choices=("up", "down")), 1)[0]
    assert request["guided_choice"] == ["up", "down"]
    assert "ignore_eos" not in request


def test_llama_cpp_gets_exactly_one_adapter_switched_on() -> None:
    requests = sent(Load(MODELS, lora_list=True), 4)
    assert requests[2]["lora"] == [
        {"id": 0, "scale": 0.0},
        {"id": 1, "scale": 0.0},
        {"id": 2, "scale": 1.0},
        {"id": 3, "scale": 0.0},
    ]


def test_failed_requests_do_not_count_as_speed() -> None:
    tally = Tally(latencies=[0.1 * i for i in range(1, 101)], errors=["status 503: busy"] * 20)
    result = summarise(tally, seconds=4.0)
    assert result.requests_per_second == 25.0
    assert result.p50_seconds == pytest.approx(5.0)
    assert result.p99_seconds == pytest.approx(9.9)
    assert (result.errors, result.first_error) == (20, "status 503: busy")
    assert result.requests == 120


class Server:
    """Holds requests until `clients` of them are in flight, then answers all with `tokens`."""

    def __init__(
        self, clients: int, tokens: int = 3, status: str = "200 OK", **answer: Any
    ) -> None:
        self._barrier = asyncio.Barrier(clients)
        self._tokens = tokens
        self._status = status
        self._answer = answer
        self.prompts: list[str] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            self.prompts.append(json.loads(await reader.readexactly(length))["prompt"])
            await self._barrier.wait()
            usage = {"completion_tokens": self._tokens, "prompt_tokens": 8}
            answer = json.dumps({"usage": usage} | self._answer).encode()
            line = f"HTTP/1.1 {self._status}\r\nContent-Length: {len(answer)}\r\n\r\n"
            writer.write(line.encode() + answer)
        writer.close()
        await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def run(server: Server, load: Load) -> Any:
    prompts = [f"prompt {i}" for i in range(load.warmup + load.requests)]
    async with server.listening() as address:
        return await measure(address, load, prompts)


def test_as_many_requests_are_in_flight_as_there_are_clients() -> None:
    """The server answers only when all four wait at once: a smaller load would hang."""

    async def scenario() -> tuple[Any, Server]:
        server = Server(clients=4)
        return await run(server, Load(MODELS, clients=4, warmup=4, requests=12)), server

    result, server = asyncio.run(asyncio.wait_for(scenario(), timeout=30))
    assert result.errors == 0
    assert result.requests_per_second > 0
    assert sorted(server.prompts) == sorted(f"prompt {i}" for i in range(16))


def test_too_few_tokens_are_an_error() -> None:
    async def scenario() -> Any:
        load = Load(MODELS, clients=1, warmup=0, requests=2)
        return await run(Server(clients=1, tokens=1), load)

    result = asyncio.run(scenario())
    assert (result.errors, result.first_error) == (2, "1 tokens instead of 3")
    assert (result.requests, result.requests_per_second) == (2, 0.0)
    assert math.isnan(result.p50_seconds)


def test_a_refusal_is_an_error_with_its_text() -> None:
    async def scenario() -> Any:
        load = Load(MODELS, clients=1, warmup=0, requests=1)
        return await run(Server(clients=1, status="404 Not Found"), load)

    assert asyncio.run(scenario()).first_error.startswith("status 404: ")


@pytest.mark.parametrize(
    ("answer", "hit_rate"),
    [
        ({}, None),
        ({"timings": {"cache_n": 6}}, 0.75),
        (
            {
                "usage": {
                    "completion_tokens": 3,
                    "prompt_tokens": 10,
                    "prompt_tokens_details": {"cached_tokens": 1},
                }
            },
            0.1,
        ),
    ],
)
def test_the_hit_rate_is_what_the_server_tells(
    answer: dict[str, Any], hit_rate: float | None
) -> None:
    async def scenario() -> Any:
        load = Load(MODELS, clients=1, warmup=0, requests=4)
        return await run(Server(clients=1, **answer), load)

    result = asyncio.run(scenario())
    assert result.errors == 0
    assert result.hit_rate == (None if hit_rate is None else pytest.approx(hit_rate))


@pytest.mark.parametrize(
    ("text", "complaint"), [(" up", None), ("sideways", "'sideways' is none of the choices")]
)
def test_an_answer_must_be_one_of_the_choices(text: str, complaint: str | None) -> None:
    async def scenario() -> Any:
        load = Load(MODELS, clients=1, warmup=0, requests=1, choices=("up", "down"))
        return await run(Server(clients=1, tokens=1, choices=[{"text": text}]), load)

    assert asyncio.run(scenario()).first_error == complaint


def test_nothing_but_failures_is_still_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert main(["--url", url, "--models", "a0", "-n", "4", "--warmup", "0", "-c", "2"]) == 1
    record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (record["requests"], record["errors"], record["p50_seconds"]) == (4, 4, None)


def test_a_wrong_mix_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--url", "http://127.0.0.1:1/v1", "--models", "a0", "--mix", "none"])
    assert error.value.code == 2
    assert "--mix" in capsys.readouterr().err
