"""What was promised, and whether the measurements keep it. Pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finlora.evaluation.tables import percent
from finlora.quality.analysis import common_seeds, difference
from finlora.quality.arms import LORA_16, LORA_16_ON_NF4, QLORA_NF4, QLORA_QERA
from finlora.quality.experiment import Measured

LOWER_BOUND = -0.015
AIM = -0.005
MIN_SEEDS = 3  # that both arms were measured with
WON_BACK = 0.9
AGREEMENT = 0.995
BYTES_SHARE = 0.3
NOT_MEASURED = "not measured"
QLORA_TITLE = "NF4 + QLoRA"
QERA_TITLE = "NF4 + QLoRA, started from the quantisation error,"


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise."""

    what: str
    found: str
    reached: bool | None  # None: not measured, or it cannot be told

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "reached", False: "not reached", None: "open"}[self.reached]


def goals(
    arms: Mapping[str, Sequence[Measured]],
    sets: Sequence[str],
    agreement: Mapping[str, int] | None,
    bytes_share: float | None,
) -> list[Goal]:
    """All of them, measured or not; those of the other start where it was measured."""
    starts = {QLORA_NF4: QLORA_TITLE}
    if QLORA_QERA in arms:
        starts[QLORA_QERA] = QERA_TITLE
    return [
        *(_non_inferior(name, title, arms, sets) for name, title in starts.items()),
        *(_won_back(name, title, arms, sets) for name, title in starts.items()),
        _agreement(agreement),
        _bytes(bytes_share),
    ]


def _non_inferior(
    name: str, title: str, arms: Mapping[str, Sequence[Measured]], sets: Sequence[str]
) -> Goal:
    what = (
        f"{title} minus 16 bits + LoRA, accuracy, pooled: lower 95 % bound above "
        f"{100 * LOWER_BOUND:.1f} points (aim: {100 * AIM:.1f}), {MIN_SEEDS} seeds or more"
    )
    num_seeds = len(_common(arms, name, LORA_16))
    if not num_seeds:
        return Goal(what, NOT_MEASURED, None)
    found = difference(arms[name], arms[LORA_16], sets)
    shown = f"{percent(found, sign=True)} points, {num_seeds} seed{'s'[: num_seeds > 1]}"
    return Goal(what, shown, found.low > LOWER_BOUND if num_seeds >= MIN_SEEDS else None)


def _won_back(
    name: str, title: str, arms: Mapping[str, Sequence[Measured]], sets: Sequence[str]
) -> Goal:
    what = (
        f"Of what a 16-bit adapter loses on the NF4 base, {title} wins back "
        f"{100 * WON_BACK:.0f} % or more"
    )
    if not all(_common(arms, one, LORA_16_ON_NF4) for one in (LORA_16, name)):
        return Goal(what, NOT_MEASURED, None)
    lost = difference(arms[LORA_16], arms[LORA_16_ON_NF4], sets)
    gained = difference(arms[name], arms[LORA_16_ON_NF4], sets)
    shown = f"lost {percent(lost, sign=True)}, won back {percent(gained, sign=True)} points"
    if lost.low <= 0:
        return Goal(what, f"{shown}: no loss that could be told from chance", None)
    share = gained.value / lost.value
    return Goal(what, f"{shown}: {100 * share:.0f} %", share >= WON_BACK)


def _common(arms: Mapping[str, Sequence[Measured]], first: str, second: str) -> set[int | None]:
    return common_seeds(arms.get(first, ()), arms.get(second, ()))


def _agreement(found: Mapping[str, int] | None) -> Goal:
    what = f"The served label is the trainer's on {100 * AGREEMENT:.1f} % of rows or more"
    if found is None:
        return Goal(what, NOT_MEASURED, None)
    share = found["same"] / found["rows"]
    shown = f"{found['same']} of {found['rows']} rows ({100 * share:.1f} %)"
    return Goal(what, shown, share >= AGREEMENT)


def _bytes(share: float | None) -> Goal:
    what = f"Quantised layers take {100 * BYTES_SHARE:.0f} % of their 16-bit bytes or less"
    if share is None:
        return Goal(what, NOT_MEASURED, None)
    return Goal(what, f"{100 * share:.1f} %", share <= BYTES_SHARE)
