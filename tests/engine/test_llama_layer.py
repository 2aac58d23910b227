"""A decoder layer in one call, and a last one of few rows, compute what modules compute of all, to
the last bit."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from finlora.adapters.adapter import Adapter
from finlora.engine.llama_layer import LayersInOneCall, LlamaLayer, LlamaStack
from finlora.engine.model_runner import ModelRunner
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import EngineUnderTest
from tests.engine.test_parity import prompts
from tests.native.kernels import needs_avx512_kernels, needs_kernels

NUM_LAYERS = 2  # of the tiny models
both_types = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_avx512_kernels)]
)
PARTS = ("_proj", "norm", "self_attn", "mlp")
Rows = list[tuple[list[int], Adapter | None]]
Run = tuple[tuple[int, ...], list[Tensor]]


def runner_of(engine: EngineUnderTest) -> ModelRunner:
    runner = engine.recorder._runner
    assert isinstance(runner, ModelRunner)
    return runner


def own_layers(engine: EngineUnderTest) -> list[LlamaLayer]:
    return [m for m in runner_of(engine)._model.modules() if isinstance(m, LlamaLayer)]


def has_stack(engine: EngineUnderTest) -> bool:
    return any(isinstance(m, LlamaStack) for m in runner_of(engine)._model.modules())


def rows_of(world: World, names: Sequence[str]) -> Rows:
    adapters = [None, *(world.adapters[name] for name in names)]
    return list(zip(prompts(len(adapters)), adapters, strict=True))


def assert_same_bits(found: list[Run], expected: list[Run]) -> None:
    for (tokens, logits), (expected_tokens, expected_logits) in zip(found, expected, strict=True):
        assert tokens == expected_tokens
        assert torch.equal(torch.stack(logits), torch.stack(expected_logits))


@pytest.fixture
def any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU where torch multiplies no number of rows faster."""
    monkeypatch.setattr("finlora.engine.llama_layer.max_rows", lambda: None)


@pytest.fixture
def num_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the layers went which way."""
    counts = {"in one call": 0, "by modules": 0}

    def counted(name: str, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: object, **kwargs: object) -> Tensor:
            counts[name] += 1
            return method(*args, **kwargs)

        return wrapper

    for name, method in (("in one call", "_natively"), ("by modules", "_one_by_one")):
        original = getattr(LayersInOneCall, method)
        monkeypatch.setattr(LayersInOneCall, method, counted(name, original))
    return counts


@needs_kernels
@pytest.mark.usefixtures("any_number_of_rows")
@both_types
# Mistral's tokens see 16 positions; Qwen2's queries, keys and values have biases, Qwen3's norms.
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 20}], ids=["whole", "chunks"])
def test_one_call_gives_the_bits_of_the_modules(
    worlds: Callable[[str], World],
    make_engine: EngineMaker,
    num_calls: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    settings: dict[str, int],
    dtype: torch.dtype,
) -> None:
    world = worlds(architecture)
    rows = rows_of(world, list(world.adapters))
    engine = make_engine(world, dtype=dtype, **settings)
    assert has_stack(engine)
    assert len(own_layers(engine)) == NUM_LAYERS
    engine.warm(adapter for _, adapter in rows if adapter is not None)
    num_calls.clear()
    num_calls.update({"in one call": 0, "by modules": 0})
    found = engine.run(rows, cache_salt="found")
    assert num_calls["in one call"] > 0 == num_calls["by modules"]
    monkeypatch.setattr(LayersInOneCall, "_fits", lambda *_: False)
    assert_same_bits(found, engine.run(rows, cache_salt="expected"))
    assert num_calls["by modules"] > 0


@needs_kernels
@both_types
def test_without_adapters_the_bits_are_the_same_too(
    llama: World, make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    rows = rows_of(llama, ())
    engine = make_engine(llama, dtype=dtype, max_loras=0)
    assert has_stack(engine)
    assert len(own_layers(engine)) == NUM_LAYERS
    found = engine.run(rows, cache_salt="found")
    monkeypatch.setattr(LayersInOneCall, "_fits", lambda *_: False)
    assert_same_bits(found, engine.run(rows, cache_salt="expected"))


@needs_kernels
@both_types
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 20}], ids=["whole", "chunks"])
def test_the_last_layer_computes_the_rows_that_are_wanted(
    worlds: Callable[[str], World],
    make_engine: EngineMaker,
    architecture: str,
    settings: dict[str, int],
    dtype: torch.dtype,
) -> None:
    world = worlds(architecture)
    rows = rows_of(world, list(world.adapters))
    engine = make_engine(world, dtype=dtype, **settings)
    engine.warm(world.adapters.values())
    seen: list[int] = []
    own_layers(engine)[-1].mlp.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    found = engine.run(rows, cache_salt="found")
    assert 0 < max(seen) <= len(rows) < max(batch.num_tokens for batch in engine.recorder.batches)
    runner_of(engine)._narrows = False
    assert_same_bits(found, engine.run(rows, cache_salt="expected"))


@needs_kernels
def test_layers_unlike_llamas_stay(
    worlds: Callable[[str], World], make_engine: EngineMaker
) -> None:
    assert own_layers(make_engine(worlds("gemma2"))) == []


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_nothing_is_replaced(llama: World, make_engine: EngineMaker) -> None:
    assert own_layers(make_engine(llama)) == []


@needs_kernels
def test_the_parts_keep_their_names(llama: World, make_engine: EngineMaker) -> None:
    model = runner_of(make_engine(llama))._model
    names = {name for name, _ in model.named_modules()}
    parts = {name for name, _ in llama.load().model.named_modules() if name.endswith(PARTS)}
    assert parts
    assert parts <= names
