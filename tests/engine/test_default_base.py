"""On the embedded base in NF4 as it is served: in bf16 where the CPU has it, else in float32."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.locate import locate
from finlora.config import DEFAULT_BASE, Quantization
from finlora.model import load_base
from finlora.native import library
from tests.adapters.peft_folders import read_tensors, save_adapter, write_tensors
from tests.engine.harness import GREEDY, EngineUnderTest, register

KINDS: dict[str, dict[str, object]] = {
    "r8": {"r": 8, "lora_alpha": 16},
    "r4": {"r": 4},
    "dora": {"r": 8, "use_dora": True},
    "rslora": {"r": 16, "use_rslora": True},
    "wide": {"r": 48},
}
HEADLINES = (
    "Harbour Lane Shipping cuts its full-year outlook as container rates slide 14 %",
    "Quarterly profit at Tessel Foods doubles",
    "Norvane Bank will publish its annual report on 3 March",
    "Two of the five plants that Orrin Steel had idled since the spring are to reopen in June, "
    "bringing back 340 jobs, the company said in a statement after the markets closed",
    "Regulator fines Calder & Wyss EUR 2.5 m",
    "Shares of Pellworm Energy were little changed",
    "Fintech start-up Kassenbon raises $40 million from existing investors to expand in Spain",
)
PROMPT = (
    "Instruction: What is the sentiment of this news? Please choose an answer from "
    "{{negative/neutral/positive}}.\nInput: {}\nAnswer: "
)
Rows = list[tuple[list[int], Adapter | None]]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterRegistry, list[Adapter]]:
    root = tmp_path_factory.mktemp("default-base")
    folders = {name: _adapter(root / name, i, **KINDS[name]) for i, name in enumerate(KINDS)}
    registry = AdapterRegistry(root / "registry")
    return registry, list(register(registry, folders).values())


def _adapter(folder: Path, seed: int, **options: object) -> Path:
    """Random, with updates of the size that training makes."""
    save_adapter(locate(DEFAULT_BASE), folder, seed=seed, **options)
    tensors = read_tensors(folder)
    small = {key: t * 0.02 if "lora_B" in key else t for key, t in tensors.items()}
    write_tensors(folder, {key: t.to(torch.bfloat16) for key, t in small.items()})
    return folder


def _engine(
    adapters: tuple[AdapterRegistry, list[Adapter]], **settings: object
) -> Iterator[EngineUnderTest]:
    engine = EngineUnderTest(load_base(DEFAULT_BASE, Quantization.NF4), adapters[0], **settings)
    engine.warm(adapters[1])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(adapters: tuple[AdapterRegistry, list[Adapter]]) -> Iterator[EngineUnderTest]:
    yield from _engine(adapters)


@pytest.fixture(scope="module")
def chunked(adapters: tuple[AdapterRegistry, list[Adapter]]) -> Iterator[EngineUnderTest]:
    """Takes so few tokens a step that every prompt is cut."""
    yield from _engine(adapters, max_num_batched_tokens=23)


@pytest.fixture(scope="module")
def one_slot(adapters: tuple[AdapterRegistry, list[Adapter]]) -> Iterator[EngineUnderTest]:
    yield from _engine(adapters, max_loras=1, adapter_cache_bytes=1)


def mixed_rows(engine: EngineUnderTest, adapters: list[Adapter], count: int = 8) -> Rows:
    choices = [None, *adapters]
    texts = [PROMPT.format(HEADLINES[i % len(HEADLINES)]) for i in range(count)]
    return [
        (engine.tokenizer.encode(text).ids, choices[i % len(choices)])
        for i, text in enumerate(texts)
    ]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit by bit, but for float32 products of torch's, which sum in an order that depends on their
    number of rows."""
    for one, other in zip(found, expected, strict=True):
        if library.obstacle() is None:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_logits_are_the_same_alone_and_in_a_mixed_batch(
    engine: EngineUnderTest, adapters: tuple[AdapterRegistry, list[Adapter]]
) -> None:
    params = replace(GREEDY, max_tokens=3)
    rows = mixed_rows(engine, adapters[1])
    # Salts keep the one from taking keys and values that the other has computed.
    together = engine.run(rows, params, cache_salt="together")
    for row, (tokens, logits) in zip(rows, together, strict=True):
        tokens_alone, logits_alone = engine.run([row], params, cache_salt="alone")[0]
        assert tokens == tokens_alone
        assert_same(logits, logits_alone)


def test_logits_are_the_same_whole_and_in_chunks(
    engine: EngineUnderTest,
    chunked: EngineUnderTest,
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    params = replace(GREEDY, max_tokens=1)
    rows = mixed_rows(engine, adapters[1])
    for (_, whole), (_, chunks) in zip(
        engine.run(rows, params, cache_salt="whole"), chunked.run(rows, params), strict=True
    ):
        assert_same(whole, chunks)
    assert any(s.start and s.num_tokens > 1 for b in chunked.recorder.batches for s in b.sequences)


def test_logits_are_the_same_with_a_cached_beginning(
    engine: EngineUnderTest,
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    params = replace(GREEDY, max_tokens=3)
    for row in mixed_rows(engine, adapters[1]):
        salted = engine.run([row], params, cache_salt="nobody has asked this before")[0]
        cached = engine.run([row], params)[0]
        again = engine.run([row], params)[0]
        for other in (cached, again):
            assert_same(salted[1], other[1])
    assert any(s.start > 20 and s.num_tokens > 1 for b in engine.recorder.batches
               for s in b.sequences)  # fmt: skip


def test_a_decoded_token_that_is_computed_again_is_the_same(
    engine: EngineUnderTest,
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    """After a preemption, decoded tokens come back as a part of the prompt."""
    rows = mixed_rows(engine, adapters[1])
    decoded = engine.run(rows, replace(GREEDY, max_tokens=4))
    again = engine.run(
        [
            (prompt + list(tokens[:3]), adapter)
            for (prompt, adapter), (tokens, _) in zip(rows, decoded, strict=True)
        ],
        replace(GREEDY, max_tokens=1),
        cache_salt="again",
    )
    for (_, one), (_, other) in zip(decoded, again, strict=True):
        assert_same(one[3:], other[:1])


@pytest.mark.slow
def test_a_thousand_loads_leave_memory_flat(
    one_slot: EngineUnderTest,
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    params = replace(GREEDY, max_tokens=1)
    token_ids = one_slot.tokenizer.encode("Profit rose").ids
    process = psutil.Process()
    resident = []
    for cycle in range(1000):  # two adapters take the one slot from each other
        one_slot.run([(token_ids, adapters[1][cycle % 2])], params)
        one_slot.recorder.clear()
        if cycle in (200, 999):
            resident.append(process.memory_info().rss)
    assert one_slot.engine.stats().num_adapters["slot"] == 1
    assert resident[1] - resident[0] < 20 * 2**20
