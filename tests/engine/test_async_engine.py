"""The engine behind asyncio: what goes on while a step runs."""

import asyncio
import threading

import pytest

from finlora.adapters.adapter import Adapter
from finlora.engine.async_engine import AsyncEngine
from finlora.engine.batch import Batch
from finlora.engine.model_runner import BatchLogits
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import EngineStoppedError
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import EngineUnderTest

ONE_TOKEN = SamplingParams(max_tokens=1)


class HeldSteps:
    """Steps that compute only when the test lets them."""

    def __init__(self, made: EngineUnderTest, patch: pytest.MonkeyPatch) -> None:
        self.running, self.go_on = threading.Event(), threading.Event()
        self._run = made.recorder.run
        patch.setattr(made.recorder, "run", self._held)

    def _held(self, batch: Batch) -> BatchLogits:
        self.running.set()
        assert self.go_on.wait(30)
        return self._run(batch)


async def one_token(engine: AsyncEngine, request_id: str, adapter: Adapter | None) -> None:
    async for _ in engine.generate([1, 2, 3], ONE_TOKEN, adapter=adapter, request_id=request_id):
        pass


def test_an_adapter_is_loaded_while_the_step_runs_that_its_request_came_in(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_engine(llama)
    steps, loaded = HeldSteps(made, monkeypatch), threading.Event()

    async def ask() -> None:
        engine = AsyncEngine(made.engine, max_num_requests=2)
        tell_engine = made.engine.adapters.on_loaded

        def on_loaded() -> None:
            loaded.set()
            tell_engine()

        made.engine.adapters.on_loaded = on_loaded
        engine.start()
        first = asyncio.create_task(one_token(engine, "first", None))
        assert await asyncio.to_thread(steps.running.wait, 30)
        cold = asyncio.create_task(one_token(engine, "cold", llama.adapters["lora"]))
        assert await asyncio.to_thread(loaded.wait, 30)
        assert not first.done()
        steps.go_on.set()
        await asyncio.gather(first, cold)
        await engine.stop(drain_seconds=10)

    asyncio.run(ask())


class Panic(BaseException):
    """As what a library in Rust raises when it panics."""


@pytest.mark.parametrize("broken", ["step", "step and the end"])
def test_whoever_waits_is_told_that_the_engine_died(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    made = make_engine(llama)

    def die(*_: object) -> None:
        raise Panic

    async def ask() -> None:
        engine = AsyncEngine(made.engine, max_num_requests=4)
        monkeypatch.setattr(made.engine, "step", die)
        if broken == "step and the end":
            monkeypatch.setattr(made.engine, "fail_all", die)
        engine.start()
        asked = [one_token(engine, str(i), None) for i in range(3)]
        results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        assert [type(result) for result in results] == [EngineStoppedError] * 3
        assert engine.failed
        assert not engine.ready

    asyncio.run(ask())
    monkeypatch.undo()
    made.engine.fail_all(EngineStoppedError("the test is over"))
