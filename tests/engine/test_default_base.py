"""On the embedded base in NF4 and bf16, as it is served."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.locate import locate
from finlora.config import DEFAULT_BASE, Quantization
from finlora.model import load_base
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


@pytest.fixture
def make_engine(
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> Iterator[Callable[..., EngineUnderTest]]:
    made: list[EngineUnderTest] = []

    def make(**settings: object) -> EngineUnderTest:
        base = load_base(DEFAULT_BASE, Quantization.NF4)
        made.append(EngineUnderTest(base, adapters[0], **settings))
        made[-1].warm(adapters[1])
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def mixed_rows(engine: EngineUnderTest, adapters: list[Adapter], count: int = 14) -> Rows:
    choices = [None, *adapters]
    texts = [PROMPT.format(HEADLINES[i % len(HEADLINES)]) for i in range(count)]
    return [
        (engine.tokenizer.encode(text).ids, choices[i % len(choices)])
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("rank_limit", [0, 64, 10**6])
def test_logits_are_bit_equal_alone_and_in_a_mixed_batch(
    make_engine: Callable[..., EngineUnderTest],
    adapters: tuple[AdapterRegistry, list[Adapter]],
    monkeypatch: pytest.MonkeyPatch,
    rank_limit: int,
) -> None:
    """Whichever LoRA path the batch takes: alone a row takes the concatenated one at limit 64."""
    monkeypatch.setattr("finlora.engine.lora.MAX_CONCATENATED_RANK", rank_limit)
    engine = make_engine()
    params = replace(GREEDY, max_tokens=3)
    rows = mixed_rows(engine, adapters[1])
    together = engine.run(rows, params)
    for row, (tokens, logits) in zip(rows, together, strict=True):
        tokens_alone, logits_alone = engine.run([row], params)[0]
        assert tokens == tokens_alone
        assert all(torch.equal(a, b) for a, b in zip(logits, logits_alone, strict=True))


def test_chunks_change_logits_by_no_more_than_packing_does(
    make_engine: Callable[..., EngineUnderTest],
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    """Attention over a chunk sums in another order than over the whole prompt; nothing else does.

    Packing changes log-probabilities by 0.1 in the mean (golden.py); the bound allows for the tail.
    """
    engine, chunked = make_engine(), make_engine(max_num_batched_tokens=32)
    params = replace(GREEDY, max_tokens=1)
    rows = mixed_rows(engine, adapters[1])
    differences = [
        (whole[0].float().log_softmax(-1) - chunks[0].float().log_softmax(-1)).abs().mean().item()
        for (_, whole), (_, chunks) in zip(
            engine.run(rows, params), chunked.run(rows, params), strict=True
        )
    ]
    assert max(differences) < 0.25


@pytest.mark.slow
def test_a_thousand_loads_leave_memory_flat(
    make_engine: Callable[..., EngineUnderTest],
    adapters: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    engine = make_engine(max_loras=1, adapter_cache_bytes=1)
    params = replace(GREEDY, max_tokens=1)
    token_ids = engine.tokenizer.encode("Profit rose").ids
    process = psutil.Process()
    resident = []
    for cycle in range(1000):  # two adapters take the one slot from each other
        engine.run([(token_ids, adapters[1][cycle % 2])], params)
        engine.recorder.clear()
        if cycle in (200, 999):
            resident.append(process.memory_info().rss)
    assert engine.engine.stats().num_adapters["slot"] == 1
    assert resident[1] - resident[0] < 20 * 2**20
