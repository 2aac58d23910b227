"""What the measured trials say about the claim. Pure arithmetic."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finlora.evaluation.bootstrap import Array, Estimate, interval
from finlora.evaluation.measures import measure
from finlora.evaluation.outcome import Outcome
from finlora.quality.arms import Arm
from finlora.quality.experiment import Measured

NUM_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm over its seeds."""

    arm: Arm
    seeds: tuple[int | None, ...]
    accuracy: Estimate  # pooled over the rows of all sets
    by_set: Mapping[str, Estimate]
    macro_f1: Mapping[str, float]  # of each set, mean over seeds


def hits(trials: Sequence[Measured], name: str) -> Array:
    """[seeds, rows] of 0 and 1."""
    return np.array([trial.outcomes[name].hits for trial in trials], dtype=np.float64)


def by_arm(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Trials of each arm, in the order of the table."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for found in measured:
        groups[found.trial.arm.name].append(found)
    return dict(groups)


def arm_result(trials: Sequence[Measured], *, seed: int = 0) -> ArmResult:
    """Accuracies with intervals over rows and seeds."""
    blocks = {name: hits(trials, name) for name in trials[0].outcomes}
    return ArmResult(
        arm=trials[0].trial.arm,
        seeds=tuple(trial.trial.seed for trial in trials),
        accuracy=mean_of(list(blocks.values()), seed=seed),
        by_set={name: mean_of([block], seed=seed) for name, block in blocks.items()},
        macro_f1={name: _macro_f1([t.outcomes[name] for t in trials]) for name in blocks},
    )


def difference(
    new: Sequence[Measured], old: Sequence[Measured], sets: Sequence[str], *, seed: int = 0
) -> Estimate:
    """Accuracy of the new minus that of the old, paired by row and by seed, pooled over sets.

    Arms without seeds are the same in every one. Raises ValueError: no seed is common to both.
    """
    pairs = _paired(new, old)
    news, olds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return mean_of([hits(news, name) - hits(olds, name) for name in sets], seed=seed)


def common_seeds(new: Sequence[Measured], old: Sequence[Measured]) -> set[int | None]:
    """Seeds that both arms were measured with."""
    return {trial.trial.seed for trial in new} & {trial.trial.seed for trial in old}


def mean_of(blocks: Sequence[Array], *, seed: int = 0) -> Estimate:
    """Mean over the rows of all blocks [seeds, rows], every row weighing the same.

    Rows are resampled within their block, all seeds of a row together; seeds are resampled too, the
    same ones for all rows, so that the interval covers other rows and other seeds.
    """
    generator = np.random.default_rng(seed)
    num_seeds = len(blocks[0])
    num_rows = sum(block.shape[1] for block in blocks)
    sums = np.zeros((NUM_RESAMPLES, num_seeds))
    for block in blocks:
        for start in range(0, NUM_RESAMPLES, 200):
            weights = _draws(generator, block.shape[1], 200)
            sums[start : start + 200] += weights @ block.T
    chosen = _draws(generator, num_seeds, NUM_RESAMPLES) / num_seeds
    value = sum(float(block.mean(0).sum()) for block in blocks) / num_rows
    return interval(value, (sums * chosen).sum(1) / num_rows)


def _draws(generator: np.random.Generator, count: int, size: int) -> Array:
    drawn: NDArray[np.int64] = generator.multinomial(count, np.full(count, 1 / count), size=size)
    return drawn.astype(np.float64)


def _paired(new: Sequence[Measured], old: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    others = {trial.trial.seed: trial for trial in old}
    only = others.get(None)
    pairs = [
        (trial, other) for trial in new if (other := others.get(trial.trial.seed, only)) is not None
    ]
    if not pairs:
        raise ValueError("no seed was measured in both arms")
    return pairs


def _macro_f1(outcomes: Sequence[Outcome]) -> float:
    values = [measure(outcome).overall["macro_f1"].value for outcome in outcomes]
    return sum(values) / len(values)
