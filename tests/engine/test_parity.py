"""PEFT, one adapter at a time, is the oracle for every row of a mixed batch."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from finlora.engine.stacked_slots import MAX_PRODUCTS_PER_MATMUL
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import GREEDY
from tests.tiny_models import ARCHITECTURES

TOLERANCE = 1e-4


@contextmanager
def peft_model(world: World) -> Iterator[PeftModel]:
    """PEFT over transformers' own NF4 model with every adapter of the world loaded."""
    first, *rest = world.folders
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own about configs and tied layers
        model = PeftModel.from_pretrained(
            world.load().model, str(world.folders[first]), adapter_name=first
        )
        for name in rest:
            model.load_adapter(str(world.folders[name]), adapter_name=name)
        model.eval()
        yield model


def oracle(model: PeftModel, name: str | None, token_ids: list[int]) -> Tensor:
    """Logits of the last position."""
    return oracle_rows(model, name, token_ids)[-1]


def oracle_rows(model: PeftModel, name: str | None, token_ids: list[int]) -> Tensor:
    """Logits of all positions."""
    ids = torch.tensor([token_ids])
    if name is not None:
        model.set_adapter(name)
    with torch.no_grad(), nullcontext() if name else model.disable_adapter():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 40, 1, 23, 70, 12, 9, 31, 3, 17]
    return [
        torch.randint(3, 500, (lengths[i % len(lengths)],), generator=generator).tolist()
        for i in range(count)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_of_a_mixed_batch_equals_peft_alone(
    architecture: str, worlds: Callable[[str], World], make_engine: EngineMaker
) -> None:
    assert_parity(worlds(architecture), make_engine)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("limit", [0, 10**9], ids=["one by one", "stacked"])
def test_so_it_does_where_no_kernels_were_compiled(
    architecture: str,
    limit: int,
    worlds: Callable[[str], World],
    make_engine: EngineMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MAX_PRODUCTS_PER_MATMUL, torch.float32, limit)
    assert_parity(worlds(architecture), make_engine)


def assert_parity(world: World, make_engine: EngineMaker) -> None:
    """Of a mixed batch with every adapter of the world."""
    engine = make_engine(world)
    engine.warm(world.adapters.values())
    names = [None, *world.adapters, None, "lora"]
    rows = list(zip(prompts(len(names)), names, strict=True))
    results = engine.run(
        [(prompt, None if name is None else world.adapters[name]) for prompt, name in rows]
    )
    mixed = max(len({s.request.digest for s in b.sequences}) for b in engine.recorder.batches)
    assert mixed == len(world.adapters) + 1, "the rows did not share a batch"
    with peft_model(world) as model:
        for (prompt, name), (tokens, logits) in zip(rows, results, strict=True):
            for step in range(GREEDY.max_tokens):
                expected = oracle(model, name, prompt + list(tokens[:step]))
                torch.testing.assert_close(
                    logits[step], expected, atol=TOLERANCE, rtol=TOLERANCE, msg=f"{name}, {step}"
                )


def test_adapters_change_what_the_base_says(llama: World, make_engine: EngineMaker) -> None:
    """The parity test would pass on adapters that do nothing."""
    engine = make_engine(llama)
    prompt = prompts(1)[0]
    _, (base, *_) = engine.run([(prompt, None)])[0]
    for name, adapter in llama.adapters.items():
        _, (adapted, *_) = engine.run([(prompt, adapter)])[0]
        assert (adapted - base).abs().max() > 100 * TOLERANCE, name
