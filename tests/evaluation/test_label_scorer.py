import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from finlora.adapters.registry import AdapterRegistry
from finlora.config import Quantization, Settings
from finlora.engine.factory import assemble
from finlora.engine.llm_engine import LLMEngine
from finlora.errors import PromptTooLongError
from finlora.evaluation.label_scorer import LabelScorer
from finlora.metrics import Metrics
from finlora.model import LoadedBase, load_base
from tests.tiny_models import build

CONTEXTS = [[5, 9, 200, 31], [77, 4, 8], [300, 12, 45, 6, 7, 99]]
TARGETS = [[40, 41, 2], [40, 2], [17, 18, 19, 2]]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


def load(folder: Path) -> LoadedBase:
    return load_base(str(folder), Quantization.NONE, device="cpu", dtype=torch.float32)


@pytest.fixture
def engine(base_folder: Path, tmp_path: Path) -> Iterator[LLMEngine]:
    settings = Settings(max_model_len=64, kv_cache_bytes=1 << 24, max_num_batched_tokens=16)
    registry = AdapterRegistry(tmp_path / "registry")
    engine = assemble(load(base_folder), settings, registry, Metrics(CollectorRegistry()))
    yield engine
    engine.check_idle()
    engine.close()


def test_probabilities_are_products_over_tokens_renormalised(
    engine: LLMEngine, base_folder: Path
) -> None:
    model = load(base_folder).model
    chances = LabelScorer(engine).probabilities(CONTEXTS, TARGETS, None)
    for context, chance in zip(CONTEXTS, chances, strict=True):
        sums = []
        for target in TARGETS:
            logits = model(input_ids=torch.tensor([context + target])).logits[0].log_softmax(-1)
            first = len(context) - 1
            sums.append(sum(logits[first + i, t].item() for i, t in enumerate(target)))
        total = sum(math.exp(value) for value in sums)
        assert chance == pytest.approx([math.exp(v) / total for v in sums], rel=1e-3)
        assert sum(chance) == pytest.approx(1)


def test_more_rows_than_are_queued_at_once(engine: LLMEngine) -> None:
    once = LabelScorer(engine).probabilities(CONTEXTS, TARGETS, None)
    many = LabelScorer(engine).probabilities(CONTEXTS * 40, TARGETS, None)
    for i, chance in enumerate(many):
        assert chance == pytest.approx(once[i % 3], rel=1e-3)


def test_very_unlikely_labels_do_not_underflow(engine: LLMEngine) -> None:
    chances = LabelScorer(engine).probabilities([[5, 6]], [[1] * 25 + [2], [3] * 25 + [2]], None)
    assert sum(chances[0]) == pytest.approx(1)


def test_a_context_too_long_is_an_error_and_leaves_nothing(engine: LLMEngine) -> None:
    with pytest.raises(PromptTooLongError):
        LabelScorer(engine).probabilities([[5, 6], [5] * 70], TARGETS, None)
