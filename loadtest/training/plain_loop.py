"""What a user writes today: transformers' NF4 base, PEFT's LoRA, transformers' Trainer.

Written to be fair: no gradient checkpointing, batches of like length (they come so), fused AdamW,
no evaluation or saving on the way, the allocator and threads of our own loop.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from finlora.bases.quiet import quiet_libraries
from finlora.model import best_dtype
from finlora.threads import set_threads
from finlora.training.allocator import keep_freed_memory
from finlora.training.batches import Example
from finlora.training.config import TrainingConfig
from loadtest.training.material import Material, read_material
from loadtest.training.measurement import Measurement, StepClock, peak_bytes

IGNORED = -100


def load(material: Material, dtype: torch.dtype, attention: str) -> PeftModel:
    """The base in NF4 with double quantisation, the initial adapter trainable on it."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        material.folder,
        dtype=dtype,
        quantization_config=quantization,
        device_map="cpu",
        attn_implementation=attention,
    )
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            # Its packed format passes no gradient on.
            layer.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(model, material.initial, is_trainable=True)


def collate(samples: Sequence[Example]) -> dict[str, Tensor]:
    """Padded on the right; only targets have labels."""
    length = max(sample.num_tokens for sample in samples)
    ids, labels, masks = [], [], []
    for sample in samples:
        padding = length - sample.num_tokens
        ids.append(sample.context + sample.target + [0] * padding)
        labels.append([IGNORED] * len(sample.context) + sample.target + [IGNORED] * padding)
        masks.append([1] * sample.num_tokens + [0] * padding)
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(masks),
    }


class Watch(TrainerCallback):
    """Seconds and losses of the steps."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.step()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs is not None and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def train(
    config: TrainingConfig,
    steps: Sequence[Sequence[Example]],
    model: PeftModel,
    micro_batch: int,
    watch: Watch,
) -> None:
    """All steps in their order."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=config.batch_size // micro_batch,
            num_train_epochs=1,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=config.max_grad_norm,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            bf16=model.dtype is torch.bfloat16,
            use_cpu=True,
            seed=config.seed,
        )
        samples: Any = [example for step in steps for example in step]
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=samples,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


@torch.no_grad()
def validation_loss(model: PeftModel, samples: Sequence[Example], micro_batch: int) -> float:
    """Mean over the target tokens."""
    model.eval()
    total = 0.0
    for i in range(0, len(samples), micro_batch):
        batch = samples[i : i + micro_batch]
        num_targets = sum(len(sample.target) for sample in batch)
        total += model(**collate(batch)).loss.item() * num_targets
    return total / sum(len(sample.target) for sample in samples)


def measure(
    material: Material, micro_batch: int, attention: str, num_steps: int | None
) -> Measurement:
    """Train, then look at the validation rows."""
    dtype = best_dtype(torch.device("cpu"))
    steps = material.steps()[:num_steps]
    model, watch = load(material, dtype, attention), Watch()
    train(material.config, steps, model, micro_batch, watch)
    peak = peak_bytes()
    linear = [m for m in model.modules() if isinstance(m, Linear4bit)]
    return Measurement(
        loop="plain",
        losses=watch.losses,
        step_seconds=watch.clock.seconds,
        step_tokens=[sum(s.num_tokens for s in step) for step in steps],
        computed_tokens=[_padded(step, micro_batch) for step in steps],
        valid_loss=validation_loss(model, material.valid, micro_batch),
        peak_bytes=peak,
        num_threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        linear_parameters=sum(m.in_features * m.out_features for m in linear),
    )


def _padded(step: Sequence[Example], micro_batch: int) -> int:
    batches = (step[i : i + micro_batch] for i in range(0, len(step), micro_batch))
    return sum(max(s.num_tokens for s in batch) * len(batch) for batch in batches)


def main(argv: list[str] | None = None) -> int:
    """Write one measurement as JSON."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.training.plain_loop")
    parser.add_argument("material", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch-size", type=int, required=True, help="of one forward pass")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--steps", type=int, help="stop after so many")
    options = parser.parse_args(argv)
    quiet_libraries()
    logging.disable_progress_bar()
    keep_freed_memory()
    set_threads(0)
    material = read_material(options.material)
    measured = measure(material, options.batch_size, options.attention, options.steps)
    options.output.write_text(measured.to_json(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
