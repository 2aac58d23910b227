import asyncio
import math
from collections.abc import Iterator
from itertools import repeat

import pytest

from loadtest.capacity.finder import Finder, Goal
from loadtest.capacity.open_loop import OpenLoop, Outcome, Work
from loadtest.capacity.report import header, line, verdict, write
from loadtest.capacity.steps import Step, Timing, smallest_visible_overload
from loadtest.headlines import Headline
from loadtest.mixes import Ask
from loadtest.server_api import ServerAPI
from tests.api.live import LiveServer

HEADLINE = Headline("Input: ", "Profit rose", "\nAnswer: ")
TOKEN = b'data: {"choices": [{"text": "x", "finish_reason": null}]}\n\n'
DONE = b"data: [DONE]\n\n"


def work(model: str = "news") -> Work:
    return zip(repeat(Ask(model)), repeat(HEADLINE), strict=False)


class SlowServer:
    """Answers no request before `together` of them are there, each on its own connection."""

    def __init__(self, together: int, answer: bytes = TOKEN + DONE) -> None:
        self._barrier = asyncio.Barrier(together)
        self._answer = answer
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the client closes."""
        self.connections += 1
        try:
            while head := await _head(reader):
                await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                await self._barrier.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(self._answer), self._answer))
        finally:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def run(server: SlowServer, dues: list[float], patience: float = 60) -> list[Outcome]:
    async def scenario() -> list[Outcome]:
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            loop = OpenLoop(ServerAPI(f"http://127.0.0.1:{port}"), work(), max_tokens=1)
            return await loop.run(dues, patience)

    return asyncio.run(asyncio.wait_for(scenario(), timeout=120))


def test_requests_do_not_wait_for_the_answers_of_others() -> None:
    """A closed loop would hang: nothing is answered before all five were sent."""
    server = SlowServer(together=5)
    outcomes = run(server, [0.0, 0.01, 0.02, 0.03, 0.2])
    assert server.connections == 5
    assert [outcome.error for outcome in outcomes] == [None] * 5
    # What was due first has waited for what was due last.
    assert outcomes[0].first_token >= 0.2
    assert all(0 <= outcome.late_by <= outcome.first_token <= outcome.end for outcome in outcomes)


def test_a_connection_serves_one_request_after_the_other() -> None:
    """Those that are due together need one each, those after them none of their own."""
    server = SlowServer(together=1)
    outcomes = run(server, [index / 20 for index in range(20)])
    assert [outcome.error for outcome in outcomes] == [None] * 20
    assert server.connections < 20


def test_what_is_never_answered_has_taken_for_ever() -> None:
    (outcome,) = run(SlowServer(together=2), [0.0], patience=0.05)
    assert outcome.error == "TimeoutError"
    assert (outcome.first_token, outcome.end) == (math.inf, math.inf)


def test_a_stream_that_breaks_off_is_an_error() -> None:
    (outcome,) = run(SlowServer(together=1, answer=TOKEN), [0.0])
    assert outcome.error == "the stream ended early"


def test_a_real_server_streams_and_refuses(tiny_server: LiveServer) -> None:
    api = ServerAPI(tiny_server.url)
    good = asyncio.run(OpenLoop(api, work(), 3).run([0.0, 0.0, 0.1], 60))
    assert [outcome.error for outcome in good] == [None] * 3
    assert all(0 < outcome.first_token <= outcome.end < math.inf for outcome in good)
    (bad,) = asyncio.run(OpenLoop(api, work("nobody"), 3).run([0.0], 60))
    assert bad.error == "404 model_not_found"
    tiny_server.wait_until_idle()


@pytest.fixture
def goal() -> Goal:
    timing = Timing(warm_up_seconds=0.1, window_seconds=0.5, min_requests=1)
    return Goal(objective_seconds=60, start=4, highest=8, timing=timing)


def test_a_search_finds_measures_and_writes(
    tiny_server: LiveServer, goal: Goal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown: list[Step] = []
    loop = OpenLoop(ServerAPI(tiny_server.url), work(), max_tokens=2)
    capacity = asyncio.run(Finder(loop, goal, shown.append).find())
    # Whatever this machine is, nothing takes a minute: the highest rate holds, and is confirmed.
    assert [(step.rate, step.holds) for step in shown] == [(4, True), (8, True), (8, True)]
    assert capacity.rate == 8
    assert [step.seed for step in shown] == [1, 1, 2]
    assert capacity.bracket.fails is None
    assert "no higher rate was tried" in verdict(capacity, goal)
    assert all(step.requests > 0 and not step.errors for step in shown)
    assert len(line(shown[0]).split()) >= len(header().split()) - 6
    folder = tmp_path_factory.mktemp("capacity")
    write(capacity, goal, {"workload": {}}, folder)
    assert (folder / "capacity.json").read_text().count('"rate": 8') == 3
    assert (folder / "capacity.png").stat().st_size > 1000


def test_a_rate_that_held_by_luck_is_not_confirmed(goal: Goal) -> None:
    """Of a server that is gone nothing holds, not even the lowest rate."""

    def nothing() -> Iterator[tuple[Ask, Headline]]:
        while True:
            yield Ask("news"), HEADLINE

    loop = OpenLoop(ServerAPI("http://127.0.0.1:1"), nothing(), max_tokens=2)
    capacity = asyncio.run(Finder(loop, goal, lambda step: None).find())
    assert capacity.rate is None
    assert capacity.steps[0].errors == {"ConnectionRefusedError": capacity.steps[0].requests}
    assert verdict(capacity, goal).startswith("no rate held")


def test_a_longer_window_shows_a_smaller_overload() -> None:
    timing = Timing(warm_up_seconds=1, window_seconds=20)
    assert smallest_visible_overload(timing, 0.5) == pytest.approx(0.025)
    assert timing.window(rate=1000) == 20
    assert timing.window(rate=4) == 25
    assert timing.window(rate=0.1) == 40
