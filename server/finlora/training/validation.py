"""Judges a learned adapter on the base as it is served, before anything is registered."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from finlora.adapters.adapter import Manifest
from finlora.adapters.peft_config import parse_config
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.engine.factory import build_engine
from finlora.evaluation.label_scorer import LabelScorer
from finlora.evaluation.scores import Scores, score
from finlora.metrics import Metrics
from finlora.model import load_base, pack
from finlora.training.adapter_files import AdapterFiles
from finlora.training.batches import Example, ExampleEncoder, by_length, collate
from finlora.training.config import TrainingConfig
from finlora.training.forward import row_logprobs
from finlora.training.restore import load_weights
from finlora.training.rows import Row
from finlora.training.workshop import attach_layers

BATCH_SIZE = 32
MAX_COMPARED_ROWS = 300  # of the comparisons beside the adapter's own score
MAX_ENGINE_ROWS = 40  # the engine computes logits of every prompt token, so it gets a sample


class Judge:
    """Chooses labels by exact probability: a label's tokens, then end-of-sequence."""

    def __init__(
        self, config: TrainingConfig, encoder: ExampleEncoder, labels: Sequence[str], device: str
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._labels = labels
        self._targets = [encoder.encode(Row("-", label)).target for label in labels]
        self._device = device
        self._base = load_base(config.base_model, config.quantization, device=device)
        # What DoRA needs of the weights can be read only before they are packed.
        self._layers = attach_layers(self._base, config)
        pack(self._base.model)

    def load(self, files: AdapterFiles) -> None:
        """Put an adapter on; until then the bare base is judged. Raises AdapterError."""
        load_weights(self._layers, parse_config(files.config), files.weights, self._base.spec)

    def choose(self, rows: Sequence[Row], *, stripped: bool = False) -> list[str]:
        """The likeliest label of each row; `stripped`: without the prompt's trailing space."""
        contexts = [self._context(row, stripped) for row in rows]
        choices = [Example(context, target) for context in contexts for target in self._targets]
        logprobs = torch.empty(len(choices))
        for indices in by_length(choices, BATCH_SIZE):
            batch = collate([choices[i] for i in indices], self._base.device)
            logprobs[indices] = row_logprobs(self._base.model, batch).cpu()
        best = logprobs.view(len(rows), -1).argmax(1)
        return [self._labels[i] for i in best.tolist()]

    def loss(self, rows: Sequence[Row]) -> float:
        """Mean negative log-likelihood of the target tokens."""
        examples = [self._encoder.encode(row) for row in rows]
        total = 0.0
        for indices in by_length(examples, BATCH_SIZE):
            batch = collate([examples[i] for i in indices], self._base.device)
            total -= row_logprobs(self._base.model, batch).sum().item()
        return total / sum(len(example.target) for example in examples)

    def choose_on_engine(
        self, rows: Sequence[Row], files: AdapterFiles, manifest: Manifest
    ) -> list[str]:
        """The same from the serving engine, the adapter registered and loaded as any other."""
        settings = Settings(
            model=self._config.base_model,
            quantization=self._config.quantization,
            device=self._device,
            max_loras=1,
            max_lora_rank=self._config.lora_r,
        )
        with tempfile.TemporaryDirectory() as folder:
            registry = AdapterRegistry(Path(folder))
            adapter = registry.register(
                "candidate", self._config.variant, files.config, files.weights, manifest
            )
            engine = build_engine(settings, registry, Metrics(CollectorRegistry()))
            try:
                contexts = [self._context(row, stripped=False) for row in rows]
                chances = LabelScorer(engine).probabilities(contexts, self._targets, adapter)
            finally:
                engine.close()
        return [max(zip(chance, self._labels, strict=True))[1] for chance in chances]

    def _context(self, row: Row, stripped: bool) -> list[int]:
        encode = self._encoder.encode_stripped if stripped else self._encoder.encode
        return encode(row).context


def validate(
    files: AdapterFiles,
    manifest: Manifest,
    config: TrainingConfig,
    rows: list[Row],
    encoder: ExampleEncoder,
    *,
    device: str,
) -> dict[str, Any]:
    """Scores for the manifest, the bare base beside them. Raises AdapterError."""
    labels = manifest.labels or []
    judge = Judge(config, encoder, labels, device)
    if not labels:
        return _losses(judge, files, rows)
    compared, sample = rows[:MAX_COMPARED_ROWS], rows[:MAX_ENGINE_ROWS]
    bare = judge.choose(compared)
    judge.load(files)
    chosen = judge.choose(rows)
    stripped = judge.choose(compared, stripped=True)
    served = judge.choose_on_engine(sample, files, manifest)
    return {
        "how": "exact label probabilities on the base as served",
        "adapter": _scores(labels, rows, chosen).as_dict(),
        "adapter_on_compared_rows": _scores(labels, compared, chosen).as_dict(),
        "adapter_without_trailing_space": _scores(labels, compared, stripped).as_dict(),
        "bare_base": _scores(labels, compared, bare).as_dict(),
        "serving_engine": {
            "num_rows": len(sample),
            "num_same_label": sum(a == b for a, b in zip(served, chosen, strict=False)),
        },
    }


def _losses(judge: Judge, files: AdapterFiles, rows: list[Row]) -> dict[str, Any]:
    bare = judge.loss(rows)
    judge.load(files)
    return {
        "how": "mean negative log-likelihood of the answers' tokens on the base as served",
        "num_rows": len(rows),
        "loss": round(judge.loss(rows), 4),
        "bare_base_loss": round(bare, 4),
    }


def _scores(labels: Sequence[str], rows: Sequence[Row], chosen: list[str]) -> Scores:
    return score(labels, [row.target for row in rows], chosen[: len(rows)])
