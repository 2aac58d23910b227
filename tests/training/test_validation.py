from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import PreTrainedTokenizerFast

from finlora.adapters.adapter import Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.engine.factory import assemble
from finlora.evaluation.label_scorer import LabelScorer
from finlora.metrics import Metrics
from finlora.model import LoadedBase
from finlora.training.adapter_files import adapter_files
from finlora.training.batches import Example, ExampleEncoder, collate
from finlora.training.config import TrainingConfig
from finlora.training.forward import row_logprobs
from finlora.training.four_bit_base import exchange_four_bit_layers
from finlora.training.trainer import Trainer
from finlora.training.workshop import attach_layers
from tests.training.rows import LABELS, make_rows


@pytest.mark.parametrize("method", [{}, {"peft_use_rslora": True}, {"peft_use_dora": True}])
def test_the_engine_answers_what_the_trainer_computes(
    method: dict[str, Any],
    load: Callable[..., LoadedBase],
    fast: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    config = TrainingConfig(lora_r=4, learning_rate=0.01, num_epochs=2, batch_size=6, **method)
    encoder = ExampleEncoder(fast, 2)
    rows = make_rows()
    base = load()
    exchange_four_bit_layers(base.model, torch.float32)
    layers = attach_layers(base, config)
    examples = [encoder.encode(row) for row in rows]
    Trainer(base.model, layers, config).fit(lambda _: examples, on_step=lambda _: None)
    files = adapter_files(layers, config, base.spec.name)
    for layer in layers.values():  # what the file holds
        for tensor in layer.tensors().values():
            tensor.data = tensor.data.bfloat16().float()
    targets = [encoder.encode(rows[i]).target for i, _ in enumerate(LABELS)]
    contexts = [example.context for example in examples[::3]]
    choices = [Example(context, target) for context in contexts for target in targets]
    logprobs = row_logprobs(base.model, collate(choices, base.device))
    trained = logprobs.view(-1, len(LABELS)).softmax(1)

    registry = AdapterRegistry(tmp_path / "registry")
    adapter = registry.register("a", config.variant, files.config, files.weights, Manifest())
    settings = Settings(max_model_len=256, kv_cache_bytes=1 << 24)
    engine = assemble(load(), settings, registry, Metrics(CollectorRegistry()))
    scorer = LabelScorer(engine)
    served = torch.tensor(scorer.probabilities(contexts, targets, adapter))
    bare = torch.tensor(scorer.probabilities(contexts, targets, None))
    engine.check_idle()
    engine.close()
    torch.testing.assert_close(served, trained, atol=1e-3, rtol=1e-3)
    assert (served - bare).abs().max() > 0.1
