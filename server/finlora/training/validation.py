"""Judges a learned adapter on the serving engine, before anything is registered."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.engine.factory import build_engine
from finlora.evaluation.label_scorer import LabelScorer
from finlora.evaluation.scores import Scores, score
from finlora.metrics import Metrics
from finlora.training.adapter_files import AdapterFiles
from finlora.training.batches import ExampleEncoder
from finlora.training.config import TrainingConfig
from finlora.training.rows import Row

MAX_COMPARED_ROWS = 300  # for the comparisons beside the adapter's own score


class Validator:
    """Scores validation rows by exact label probabilities, as the server would answer."""

    def __init__(self, scorer: LabelScorer, encoder: ExampleEncoder, labels: Sequence[str]) -> None:
        self._scorer = scorer
        self._encoder = encoder
        self._labels = labels

    def scores(self, rows: Sequence[Row], adapter: Adapter | None, *, stripped: bool) -> Scores:
        """Scores of rows; `stripped`: for clients that strip the prompt's trailing space."""
        encode = self._encoder.encode_stripped if stripped else self._encoder.encode
        targets = [self._encoder.encode(Row("-", label)).target for label in self._labels]
        contexts = [encode(row).context for row in rows]
        chances = self._scorer.probabilities(contexts, targets, adapter)
        best = [max(zip(chance, self._labels, strict=True))[1] for chance in chances]
        return score(self._labels, [row.target for row in rows], best)


def validate_on_engine(
    files: AdapterFiles,
    manifest: Manifest,
    config: TrainingConfig,
    rows: list[Row],
    encoder: ExampleEncoder,
    *,
    device: str,
) -> dict[str, Any]:
    """Scores for the manifest, from the packed base with the adapter in a slot.

    The adapter goes through a registry of its own, so that it is loaded and checked as any other.
    Raises AdapterError when it would be refused.
    """
    sample = rows[:MAX_COMPARED_ROWS]
    settings = Settings(
        model=config.base_model,
        quantization=config.quantization,
        device=device,
        max_lora_rank=config.lora_r,
        max_loras=1,
        metrics_max_adapters=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        registry = AdapterRegistry(Path(folder))
        adapter = registry.register(
            "candidate", config.variant, files.config, files.weights, manifest
        )
        engine = build_engine(settings, registry, Metrics(CollectorRegistry()))
        try:
            validator = Validator(LabelScorer(engine), encoder, manifest.labels or [])
            return {
                "how": "exact label probabilities on the serving engine",
                "adapter": validator.scores(rows, adapter, stripped=False).as_dict(),
                "adapter_on_sample": validator.scores(sample, adapter, stripped=False).as_dict(),
                "adapter_without_trailing_space_on_sample": validator.scores(
                    sample, adapter, stripped=True
                ).as_dict(),
                "bare_base_on_sample": validator.scores(sample, None, stripped=False).as_dict(),
            }
        finally:
            engine.close()
