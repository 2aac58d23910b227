"""A server that has no room now: its refusals are no answers."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from finlora.batch import sender
from finlora.batch.cli import main
from finlora.batch.requests import BatchRequest, Line
from finlora.batch.responses import ResponseFile
from finlora.batch.run import BatchRun
from finlora.batch.window import Window
from finlora.errors import RemoteError
from finlora.predict.progress import Lines
from tests.api.live import LiveServer, serving
from tests.batch.conftest import World

NUM_REFUSALS = 12
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def small_server(world: World) -> Iterator[LiveServer]:
    """Room for four sequences."""
    settings = world.settings.model_copy(update={"max_num_seqs": 2, "max_num_waiting": 2})
    with serving(settings) as live:
        yield live


def write(path: Path, num_lines: int, num_prompts: int) -> Path:
    body = {"model": "news", "prompt": ["Profit rose"] * num_prompts, "max_tokens": 16}
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i in range(num_lines)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def statuses(path: Path) -> list[int]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [line["response"]["status_code"] for line in lines]


def send(path: Path, custom_ids: Sequence[str], answer: Answer) -> None:
    """A run against a server that is a function."""

    async def run(output: ResponseFile) -> None:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            lines = [
                Line(
                    custom_id,
                    custom_id,
                    BatchRequest(custom_id=custom_id, method="POST", url="/v1/classify", body={}),
                )
                for custom_id in custom_ids
            ]
            await BatchRun(client, output, Lines(), concurrency=8).send_all(lines)

    with ResponseFile(path) as output:
        asyncio.run(run(output))


def busy() -> httpx.Response:
    error = {"error": {"message": "4 requests are queued already", "code": "overloaded"}}
    return httpx.Response(503, headers={"retry-after": "0"}, json=error)


def test_lines_of_many_sequences_wait_for_a_small_server(
    small_server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finlora.predict.remote.MAX_SECONDS_TO_WAIT", 0.05)
    source, output = write(tmp_path / "in.jsonl", 24, num_prompts=3), tmp_path / "out.jsonl"
    assert main([str(source), "-o", str(output), "--url", small_server.url]) == 0
    assert statuses(output) == [200] * 24


def test_this_process_has_room_for_all_its_lines(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINLORA_MAX_NUM_WAITING", "1")
    source, output = write(tmp_path / "in.jsonl", 6, num_prompts=5), tmp_path / "out.jsonl"
    assert main([str(source), "-o", str(output), *world.flags, "--max-num-seqs", "2"]) == 0
    assert statuses(output) == [200] * 6


def test_a_busy_answer_is_no_answer_however_often_it_comes(tmp_path: Path) -> None:
    num_refused = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal num_refused
        num_refused += 1
        return busy() if num_refused <= NUM_REFUSALS else httpx.Response(200, json={})

    send(tmp_path / "out.jsonl", ["a"], answer)
    assert statuses(tmp_path / "out.jsonl") == [200]


def test_a_server_that_stays_busy_ends_the_run_and_leaves_its_lines_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.2)
    output = tmp_path / "out.jsonl"
    with pytest.raises(RemoteError, match=r"nothing for .* but 503 \(4 requests are queued"):
        send(output, ["a", "b"], lambda request: busy())
    assert statuses(output) == []
    send(output, ["a", "b"], lambda request: httpx.Response(200, json={}))
    assert statuses(output) == [200, 200]


def test_a_window_is_as_wide_as_what_the_server_holds() -> None:
    async def run() -> None:
        window = Window(3)
        async with window.place(), window.place():
            window.turned_away()  # a third one
            third = asyncio.create_task(window.place().__aenter__())
            await asyncio.sleep(0)
            assert not third.done()
        await third
        assert window.num_open == 1
        for _ in range(8):
            window.answered()
        async with window.place(), window.place():
            assert window.num_open == 3

    asyncio.run(run())
