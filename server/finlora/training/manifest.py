"""The manifest of what a run made: everything a PEFT folder does not say."""

from datetime import UTC, datetime
from typing import Any

import torch

from finlora.adapters.adapter import Manifest, TrainingQuantization
from finlora.config import Quantization
from finlora.model import LoadedBase
from finlora.prompts import prompt_format_hash
from finlora.training.config import TrainingConfig
from finlora.training.preparation import Dataset
from finlora.training.trainer import TrainingHistory
from finlora.training.workshop import Workshop

BLOCK_SIZE = 64


def build_manifest(
    config: TrainingConfig, dataset: Dataset, workshop: Workshop, history: TrainingHistory
) -> Manifest:
    """Scores, and the temperature that they ask for, are added when they are known."""
    spec, eos = workshop.base.spec, [workshop.eos]
    return Manifest(
        base_name=spec.name,
        base_fingerprint=spec.fingerprint,
        tokenizer_hash=spec.tokenizer_hash,
        prompt_format_hash=prompt_format_hash(config.template, eos),
        quantization=trained_on(workshop.base),
        task=config.task,
        labels=dataset.labels or None,
        prompt_template=config.prompt_template,
        eos_token_ids=eos,
        training=_facts(config, dataset, workshop, history),
        data=[source.model_dump() for source in dataset.origins] + dataset.sources(),
        licence=config.licence,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def trained_on(base: LoadedBase) -> TrainingQuantization:
    """How the base was stored that an adapter learned on."""
    four_bits = base.quantization is Quantization.NF4
    return TrainingQuantization(
        type=base.quantization.value,
        double_quant=True if four_bits else None,
        block_size=BLOCK_SIZE if four_bits else None,
        compute_dtype=str(base.compute_dtype).removeprefix("torch."),
    )


def _facts(
    config: TrainingConfig, dataset: Dataset, workshop: Workshop, history: TrainingHistory
) -> dict[str, Any]:
    best = history.best(config.eval_metric)
    # Paths are the trainer's own business; the data's hashes stand under `data`.
    settings = config.model_dump(exclude={"dataset_path", "val_dataset_path", "sources"})
    return {
        "config": settings,
        "initial_adapter": workshop.initial_adapter,
        "num_train_rows": len(workshop.examples.whole),
        "num_valid_rows": len(workshop.valid.whole),
        "num_duplicates_dropped": dataset.split.num_duplicates,
        "num_rows_too_long": workshop.examples.num_too_long + workshop.valid.num_too_long,
        "num_trainable_parameters": workshop.num_trainable,
        "num_steps": len(history.steps),
        "kept_step": None if best is None else best.step,
        "gradient_checkpointing": workshop.checkpointing,
        "num_tokens": history.num_tokens,
        "tokens_per_second": round(history.tokens_per_second, 1),
        "torch": torch.__version__,
    }
