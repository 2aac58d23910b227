"""What is compared: which adapter was trained on which base, and which base serves it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finlora.config import Quantization
from finlora.errors import ConfigError
from finlora.training.config import Init

QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is trained; everything else is the same for all."""

    quantization: Quantization
    rank: int = 8
    targets: tuple[str, ...] = ()  # empty: every linear layer
    init: Init = "default"

    @property
    def name(self) -> str:
        """Short, for files and adapters."""
        layers = "qkv" if self.targets else "all"
        start = "" if self.init == "default" else f"-{self.init}"
        return f"{self.quantization}-r{self.rank}-{layers}{start}"


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table."""

    name: str
    title: str
    served_on: Quantization
    recipe: Recipe | None = None  # None: the bare base
    is_merged: bool = False  # into the 16-bit weights, which are then served
    is_main: bool = False  # trained with every seed; the others with the first

    @property
    def needs_training(self) -> bool:
        """Whether it has an adapter."""
        return self.recipe is not None


LORA, QLORA = Recipe(Quantization.NONE), Recipe(Quantization.NF4)
LORA_16, QLORA_NF4, LORA_16_ON_NF4 = "lora-16", "qlora-nf4", "lora-16-on-nf4"
QLORA_QERA = "qlora-qera"
ARMS = (
    Arm("base-16", "16-bit base", Quantization.NONE),
    Arm("base-nf4", "NF4 base", Quantization.NF4),
    Arm("base-fp4", "FP4 base", Quantization.FP4),
    Arm(LORA_16, "16-bit base + LoRA", Quantization.NONE, LORA, is_main=True),
    Arm(QLORA_NF4, "NF4 base + QLoRA (what is served)", Quantization.NF4, QLORA, is_main=True),
    Arm(LORA_16_ON_NF4, "16-bit adapter on the NF4 base", Quantization.NF4, LORA, is_main=True),
    Arm("qlora-on-16", "QLoRA adapter on the 16-bit base", Quantization.NONE, QLORA),
    Arm("qlora-merged", "QLoRA merged into 16 bits", Quantization.NONE, QLORA, is_merged=True),
    Arm(QLORA_QERA, "NF4 + QLoRA, started from the quantisation error", Quantization.NF4,
        Recipe(Quantization.NF4, init="qera"), is_main=True),
    Arm("qlora-qkv", "NF4 + QLoRA, q, k, v only", Quantization.NF4,
        Recipe(Quantization.NF4, targets=QKV)),
    Arm("qlora-r4", "NF4 + QLoRA, r 4", Quantization.NF4, Recipe(Quantization.NF4, rank=4)),
    Arm("qlora-r16", "NF4 + QLoRA, r 16", Quantization.NF4, Recipe(Quantization.NF4, rank=16)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """An arm with one seed."""

    arm: Arm
    seed: int | None  # None: nothing is random in it


def choose_arms(names: Sequence[str]) -> list[Arm]:
    """Arms by name, in the order of the table. Raises ConfigError."""
    known = {arm.name for arm in ARMS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"there is no arm {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return [arm for arm in ARMS if arm.name in names]


def trials(arms: Sequence[Arm], seeds: Sequence[int], *, all_seeds: bool) -> Iterator[Trial]:
    """What has to be measured: main arms with every seed, others with the first unless told."""
    for arm in arms:
        if not arm.needs_training:
            yield Trial(arm, None)
            continue
        for seed in seeds if arm.is_main or all_seeds else seeds[:1]:
            yield Trial(arm, seed)
