"""The shipped adapters as they are served, against PEFT on unpacked NF4 layers."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.config import DEFAULT_BASE, Quantization
from finlora.engine.sampling_params import SamplingParams
from finlora.model import LoadedBase, load_base
from tests.engine.harness import EngineUnderTest

ROOT = Path(__file__).parents[2]
NUM_PROMPTS = 100  # of each adapter
NUM_BASE_PROMPTS = 30  # to measure the noise on
MAX_EXCUSED = 0.05
BATCH_SIZE = 10  # the oracle's layers are dequantised anew in every forward pass


def headlines() -> list[str]:
    lines = (ROOT / "examples" / "news_headlines.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["context"] for line in lines]


@pytest.fixture(scope="module")
def shipped() -> tuple[AdapterRegistry, list[Adapter]]:
    registry = AdapterRegistry(ROOT / "adapters_registry")
    return registry, registry.current()


def served_logits(
    registry: AdapterRegistry, rows: list[tuple[list[int], Adapter | None]]
) -> list[Tensor]:
    engine = EngineUnderTest(load_base(DEFAULT_BASE, Quantization.NF4), registry)
    try:
        results = engine.run(rows, SamplingParams(temperature=0, max_tokens=1))
    finally:
        engine.close()
    return [logits[0].float() for _, logits in results]


def oracle_logits(base: LoadedBase, adapter: Adapter | None, prompts: list[list[int]]) -> Tensor:
    """[prompts, vocabulary] by transformers and PEFT; trap: on packed layers DoRA reads garbage."""
    model: torch.nn.Module = base.model
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's own
            model = PeftModel.from_pretrained(base.model, str(adapter.folder)).eval()
    with torch.no_grad():
        rows = [
            last_logits(model, prompts[i : i + BATCH_SIZE])
            for i in range(0, len(prompts), BATCH_SIZE)
        ]
    if isinstance(model, PeftModel):
        model.unload()
    return torch.cat(rows).float()


def last_logits(model: torch.nn.Module, prompts: list[list[int]]) -> Tensor:
    """[prompts, vocabulary]; padded on the right, where a causal model never looks."""
    lengths = torch.tensor([len(ids) for ids in prompts])
    ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=lengths - 1).logits
    return logits.diagonal().T  # type: ignore[no-any-return]


def test_greedy_tokens_equal_pefts_wherever_packing_leaves_no_doubt(
    shipped: tuple[AdapterRegistry, list[Adapter]],
) -> None:
    registry, adapters = shipped
    assert len(adapters) >= 2
    unpacked = load_base(DEFAULT_BASE, Quantization.NF4, training=True)
    tokenizer = unpacked.tokenizer.backend_tokenizer
    prompts = [tokenizer.encode(text).ids for text in headlines()]
    choices: list[Adapter | None] = [None, *adapters]
    sets = [(a, prompts[i * NUM_PROMPTS :][:NUM_PROMPTS]) for i, a in enumerate(choices)]
    sets[0] = (None, sets[0][1][:NUM_BASE_PROMPTS])
    rows = [(ids, adapter) for adapter, chosen in sets for ids in chosen]
    served = torch.stack(served_logits(registry, rows)).split([len(ids) for _, ids in sets])
    expected = [oracle_logits(unpacked, adapter, chosen) for adapter, chosen in sets]
    noise = packing_noise(served[0], expected[0])
    pairs = list(zip(served[1:], expected[1:], strict=True))
    differs = torch.cat([s.argmax(-1) != e.argmax(-1) for s, e in pairs])
    in_doubt = torch.cat([margins(e) <= 2 * noise for _, e in pairs])
    print(  # noqa: T201
        f"{len(differs)} rows, {int(differs.sum())} differ; noise of the margin {noise:.3f}, "
        f"{int(in_doubt.sum())} rows within twice that"
    )
    assert len(differs) >= 200
    assert not bool((differs & ~in_doubt).any())
    assert differs.float().mean().item() <= MAX_EXCUSED


def packing_noise(served: Tensor, expected: Tensor) -> float:
    """How far packing moves the two likeliest logits of the bare base apart, root mean square."""
    top = expected.topk(2).indices
    moved = served.gather(1, top) - expected.gather(1, top)
    return (moved[:, 0] - moved[:, 1]).square().mean().sqrt().item()


def margins(logits: Tensor) -> Tensor:
    """By how much each row's likeliest token leads."""
    top = logits.topk(2).values
    return top[:, 0] - top[:, 1]
