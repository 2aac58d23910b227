"""Our own trainer in a process of its own, on the same material."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from finlora.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE
from finlora.adapters.peft_config import parse_config
from finlora.bases.quiet import quiet_libraries
from finlora.bases.spec import LinearShape
from finlora.bench.roofline import measure_rates
from finlora.threads import set_threads
from finlora.training.allocator import keep_freed_memory
from finlora.training.batches import Example, collate, micro_batches
from finlora.training.evaluation import ValidationRows
from finlora.training.restore import load_weights
from finlora.training.trainer import Step, Trainer
from finlora.training.workshop import attach_layers, load_for_training
from loadtest.training.material import Material, read_material
from loadtest.training.measurement import Measurement, StepClock, peak_bytes


def measure(material: Material) -> Measurement:
    """Train, then look at the validation rows."""
    config, clock = material.config, StepClock()
    base = load_for_training(config, device="cpu")
    layers = attach_layers(base, config)
    settings = parse_config((material.initial / CONFIG_FILE).read_bytes())
    load_weights(layers, settings, (material.initial / WEIGHTS_FILE).read_bytes(), base.spec)
    trainer = Trainer(base.model, layers, config)

    def on_step(_: Step) -> None:
        clock.step()

    clock.start()
    history = trainer.fit(lambda _: material.rows, on_step=on_step)
    peak = peak_bytes()
    steps = material.steps()
    return Measurement(
        loop="finlora",
        losses=[step.loss for step in history.steps],
        step_seconds=clock.seconds,
        step_tokens=[sum(row.num_tokens for row in step) for step in steps],
        computed_tokens=[_computed(step) for step in steps],
        valid_loss=ValidationRows(material.valid, [], []).evaluate(base.model, 0).loss,
        peak_bytes=peak,
        num_threads=torch.get_num_threads(),
        dtype=str(base.compute_dtype).removeprefix("torch."),
        linear_parameters=sum(
            shape.in_features * shape.out_features for shape in base.spec.linear_layers.values()
        ),
    )


def _computed(step: list[Example]) -> int:
    cpu = torch.device("cpu")
    return sum(len(collate(part, cpu).input_ids) for part in micro_batches(step, cpu))


def matmul_flops(dtype: torch.dtype) -> float:
    """Rate of large square matrices with this process's threads, a second."""
    shapes = [LinearShape(1024, 1024)]  # the model's own are not looked at
    device = torch.device("cpu")
    rates = measure_rates(shapes, dtype=dtype, device=device, repeats=3, read_bytes=1 << 20)
    return rates.matmul


def main(argv: list[str] | None = None) -> int:
    """Write one measurement as JSON."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.training.our_loop")
    parser.add_argument("material", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(argv)
    quiet_libraries()
    keep_freed_memory()
    set_threads(0)
    measured = measure(read_material(options.material))
    flops = matmul_flops(getattr(torch, measured.dtype))
    options.output.write_text(replace(measured, matmul_flops=flops).to_json(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
