"""How large an experiment is: rows, steps, seeds, arms. The sizes are written once, here."""

from dataclasses import dataclass, replace
from pathlib import Path

from finlora.config import DEFAULT_BASE, Quantization
from finlora.quality.arms import ARMS, LORA_16, LORA_16_ON_NF4, QLORA_NF4, Recipe
from finlora.training.config import ALL_LINEAR, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One experiment. The same rows, prompt, steps and seeds for every arm."""

    model: str = DEFAULT_BASE
    train: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    data_dir: Path | None = None
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    all_seeds: bool = False  # for the ablations too
    max_train_rows: int | None = 2400
    max_test_rows: int = 1200  # of each set
    num_epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    device: str = "auto"

    def training_config(self, recipe: Recipe, seed: int, held_out: list[str]) -> TrainingConfig:
        """What the trainer is told; it drops training rows whose text is held out."""
        assert recipe.quantization in (Quantization.NF4, Quantization.NONE)
        return TrainingConfig(
            base_model=self.model,
            dataset_path=list(self.train),
            val_dataset_path=held_out,
            quant_bits=4 if recipe.quantization is Quantization.NF4 else 16,
            lora_r=recipe.rank,
            lora_alpha=2.0 * recipe.rank,
            lora_target_modules=list(recipe.targets) or ALL_LINEAR,
            init_lora_weights=recipe.init,
            learning_rate=self.learning_rate,
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            max_rows=self.max_train_rows,
            optimizer="adamw",
            strip_probability=0.0,
            eval_steps=0,
            seed=seed,
        )


DEFAULT = Plan()
QUICK = replace(
    DEFAULT,
    arms=("base-16", "base-nf4", LORA_16, QLORA_NF4, LORA_16_ON_NF4),
    seeds=(0,),
    max_train_rows=320,
    max_test_rows=200,
)
FULL = replace(DEFAULT, seeds=(0, 1, 2, 3, 4), all_seeds=True, max_train_rows=None, num_epochs=2)
