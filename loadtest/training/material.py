"""What both training loops of a comparison are given: the same tokens, order, start and steps."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from finlora.bases.locate import locate
from finlora.bases.quiet import quiet_libraries
from finlora.config import DEFAULT_BASE
from finlora.datasets.row_files import read_rows
from finlora.datasets.rows import first_rows, split_rows
from finlora.errors import ConfigError
from finlora.training.adapter_files import adapter_files
from finlora.training.batches import Example, ExampleEncoder
from finlora.training.config import TrainingConfig
from finlora.training.preparation import eos_token_id
from finlora.training.trainer import batches_of_epoch
from finlora.training.workshop import attach_layers, load_for_training

# Plain AdamW at a constant rate: the two programs' schedules and 8-bit states are not compared.
RECIPE = {
    "lora_r": 8,
    "lora_alpha": 16,
    "learning_rate": 5e-4,
    "num_epochs": 1,
    "warmup": 0.0,
    "lr_scheduler": "constant",
    "optimizer": "adamw",
}


B_STD = 0.002


@dataclass(frozen=True)
class Material:
    """One run of either loop."""

    config: TrainingConfig
    folder: Path  # transformers folder of the base in 16 bits
    initial: Path  # PEFT folder that both start from
    rows: list[Example]
    valid: list[Example]

    def steps(self) -> list[list[Example]]:
        """Rows of every optimizer step, in the order of our own trainer."""
        return batches_of_epoch(self.rows, self.config, 0)

    def write(self, file: Path) -> None:
        """As JSON."""
        fields = {
            "config": self.config.model_dump(),
            "folder": str(self.folder),
            "initial": str(self.initial),
            "rows": [asdict(row) for row in self.rows],
            "valid": [asdict(row) for row in self.valid],
        }
        file.write_text(json.dumps(fields), "utf-8")


def read_material(file: Path) -> Material:
    """What `Material.write` wrote."""
    fields = json.loads(file.read_bytes())
    return Material(
        config=TrainingConfig.model_validate(fields["config"]),
        folder=Path(fields["folder"]),
        initial=Path(fields["initial"]),
        rows=[Example(**row) for row in fields["rows"]],
        valid=[Example(**row) for row in fields["valid"]],
    )


def make_material(
    model: str, data: Path, output: Path, *, num_steps: int, batch_size: int, num_valid: int
) -> Material:
    """Tokenise rows, make the initial adapter. Raises ConfigError when there are too few rows."""
    config = TrainingConfig(base_model=model, batch_size=batch_size, **RECIPE)  # type: ignore[arg-type]
    split = split_rows(read_rows([data]), config.val_fraction)
    num_rows = num_steps * batch_size  # full batches only, or batch sizes could not be compared
    if len(split.train) < num_rows:
        raise ConfigError(f"{num_rows} rows are needed, {data} has {len(split.train)} to train on")
    base = load_for_training(config, device="cpu")
    encoder = ExampleEncoder(base.tokenizer, eos_token_id(base.tokenizer, base.spec.eos_token_ids))
    initial, layers = output / "initial", attach_layers(base, config)
    for layer in layers.values():
        # Not zero: an adapter that changes nothing is refused where adapters are read.
        torch.nn.init.normal_(layer.b, std=B_STD)
    adapter_files(layers, config, base.spec.name).save(initial)
    return Material(
        config=config,
        folder=locate(model),
        initial=initial,
        rows=[encoder.encode(row) for row in first_rows(split.train, num_rows)],
        valid=[encoder.encode(row) for row in split.valid[:num_valid]],
    )


def main(argv: list[str] | None = None) -> int:
    """Make it, in a process that ends before anything is measured."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.training.material")
    add = parser.add_argument
    add("output", type=Path, help="folder")
    add("--model", default=DEFAULT_BASE)
    add("--data", type=Path, required=True)
    add("--steps", type=int, required=True)
    add("--batch-size", type=int, required=True)
    add("--valid", type=int, required=True)
    options = parser.parse_args(argv)
    quiet_libraries()
    options.output.mkdir(parents=True, exist_ok=True)
    material = make_material(
        options.model,
        options.data,
        options.output,
        num_steps=options.steps,
        batch_size=options.batch_size,
        num_valid=options.valid,
    )
    material.write(options.output / "material.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
