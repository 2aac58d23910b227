"""What a restoration is asked to do; its defaults are written once, here."""

from dataclasses import dataclass
from pathlib import Path

from finlora.adapters.registry import AdapterRegistry
from finlora.training.config import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorationOrder:
    """One base, some text, one adapter for each rank."""

    name: str
    model: str
    texts: tuple[Path, ...]
    registry: AdapterRegistry
    command: str  # for the model card
    held_out: tuple[Path, ...] = ()  # none: a tenth of the texts
    ranks: tuple[int, ...] = (16,)
    num_steps: int = 400
    batch_size: int = 4
    length: int = 128  # tokens of a sequence
    calibration_sequences: int = 64
    held_out_sequences: int = 64
    learning_rate: float = 5e-4
    seed: int = 0
    device: str = "auto"
    licence: str | None = None

    @property
    def max_sequences(self) -> int:
        """Of the text that is learned from."""
        return self.num_steps * self.batch_size

    def adapter_name(self, rank: int) -> str:
        """The name itself for one rank, else with the rank behind it."""
        return self.name if len(self.ranks) == 1 else f"{self.name}-r{rank}"

    def config(self, rank: int) -> TrainingConfig:
        """What the adapter's files and manifest say of it. Scaling is 1."""
        return TrainingConfig(
            base_model=self.model,
            lora_r=rank,
            lora_alpha=float(rank),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_seq_len=self.length,
            num_epochs=1,
            optimizer="adamw",
            seed=self.seed,
            task="restoration",
            description="Brings the NF4 base back towards its 16-bit original; learned without "
            "labels.",
            licence=self.licence,
        )
