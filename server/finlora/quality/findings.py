"""The result of an experiment, as Markdown and JSON."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from finlora import __version__
from finlora.bases.embedded import EMBEDDED
from finlora.config import Quantization
from finlora.evaluation.tables import Table, percent
from finlora.quality.analysis import ArmResult, arm_result, by_arm, common_seeds, difference
from finlora.quality.arms import LORA_16, QLORA_NF4
from finlora.quality.experiment import MEMORY, Experiment, Measured
from finlora.quality.goals import Goal, goals
from finlora.quality.plan import Plan
from finlora.quality.results import Subject

BYTES_OF_16_BITS = 2


@dataclass(frozen=True, slots=True)
class QualityFindings:
    """All that was measured so far."""

    base: str
    fingerprint: str
    plan: Plan
    facts: dict[str, Any]
    test_sets: dict[str, int]  # rows of each
    arms: dict[str, list[Measured]]
    results: list[ArmResult]
    goals: list[Goal]
    origin: str | None  # what has to be said of the 16-bit weights
    created: str

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(self.test_sets)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "finlora": __version__,
            "created": self.created,
            "origin_of_16_bit_weights": self.origin,
            "base": self.base,
            "base_fingerprint": self.fingerprint,
            "plan": {
                name: _plain(value) for name, value in asdict(self.plan).items() if name != "model"
            },
            "facts": self.facts,
            "test_sets": self.test_sets,
            "arms": [
                {
                    "name": result.arm.name,
                    "title": result.arm.title,
                    "seeds": result.seeds,
                    "accuracy": result.accuracy.as_dict(),
                    "by_set": {name: e.as_dict() for name, e in result.by_set.items()},
                    "macro_f1": dict(result.macro_f1),
                }
                for result in self.results
            ],
            "goals": [asdict(goal) | {"verdict": goal.verdict} for goal in self.goals],
        }

    def markdown(self) -> str:
        """The report."""
        parts = ["# Quality: NF4 with an adapter beside 16 bits", *self._preface()]
        parts += [f"## {table.caption}\n\n{table.markdown()}" for table in self.tables()]
        return "\n\n".join(parts) + "\n"

    def tables(self) -> list[Table]:
        """Arms, paired differences, goals."""
        return [self._arms_table(), self._difference_table(), self._goals_table()]

    def _preface(self) -> Iterator[str]:
        if self.origin is not None:
            yield f"**{self.origin}**"
        sets = ", ".join(f"{name} ({n} rows)" for name, n in self.test_sets.items())
        facts = ", ".join(f"{name.replace('_', ' ')} {v}" for name, v in self.facts.items())
        yield f"Base {self.base}. Test sets: {sets}. {facts}. {self.created}."
        yield (
            "The same rows, prompt, steps and seeds for every adapter. Labels by exact probability "
            "from the serving engine. Intervals are 95 %, over other rows and other seeds."
        )

    def _arms_table(self) -> Table:
        head = ("arm", "seeds", "accuracy, %, all rows", *(f"{s}, %" for s in self.sets))
        rows = [
            (
                result.arm.title,
                "-" if result.seeds == (None,) else str(len(result.seeds)),
                percent(result.accuracy),
                *(percent(result.by_set[name]) for name in self.sets),
            )
            for result in self.results
        ]
        return Table("Accuracy", head, tuple(rows))

    def _difference_table(self) -> Table:
        """Every arm minus the 16-bit base with LoRA."""
        reference = self.arms.get(LORA_16, [])
        rows = []
        for result in self.results:
            own = self.arms[result.arm.name]
            if result.arm.name == LORA_16 or not common_seeds(own, reference):
                continue
            pooled = difference(own, reference, self.sets)
            each = (difference(own, reference, [name]) for name in self.sets)
            cells = (percent(e, sign=True) for e in (pooled, *each))
            rows.append((result.arm.title, *cells))
        head = ("arm minus 16-bit base + LoRA", "points, all rows", *self.sets)
        return Table("Paired differences of accuracy", head, tuple(rows))

    def _goals_table(self) -> Table:
        rows = tuple((goal.what, goal.found, goal.verdict) for goal in self.goals)
        return Table("Goals", ("goal", "measured", "verdict"), rows)


def find(experiment: Experiment) -> QualityFindings:
    """What is known now; trials that are missing are left out."""
    arms = by_arm(experiment.measured())
    sets = {test_set.name: len(test_set.rows) for test_set in experiment.test_sets}
    return QualityFindings(
        base=experiment.spec.name,
        fingerprint=experiment.spec.fingerprint,
        plan=experiment.plan,
        facts=_facts(experiment, arms.get(QLORA_NF4, [])),
        test_sets=sets,
        arms=arms,
        results=[arm_result(trials) for trials in arms.values()],
        goals=goals(arms, list(sets), experiment.agreement(), _bytes_share(experiment)),
        origin=_origin(experiment.plan.model),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _origin(model: str) -> str | None:
    if model not in EMBEDDED:
        return None
    return (
        f"The 16-bit weights of {model} come from a 4-bit file ({EMBEDDED[model].origin}): what is "
        "called 16 bits here has been through 4 bits before."
    )


def _facts(experiment: Experiment, trials: Sequence[Measured]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    for trial in trials[:1]:
        adapter = trial.subject.adapter
        training: Mapping[str, Any] = (adapter.manifest.training if adapter else None) or {}
        facts |= {
            "training_rows": training.get("num_train_rows"),
            "training_steps": training.get("num_steps"),
        }
        quantization = adapter.manifest.quantization if adapter else None
        facts["computed_in"] = quantization.compute_dtype if quantization else None
    return facts


def _bytes_share(experiment: Experiment) -> float | None:
    """Weights and scales of the NF4 layers in service, over two bytes a weight."""
    subject = Subject(experiment.spec.fingerprint, Quantization.NF4, None)
    held = experiment.store.facts(subject, MEMORY)
    if held is None:
        return None
    shapes = experiment.spec.linear_layers.values()
    weights = sum(shape.in_features * shape.out_features for shape in shapes)
    stored: int = held["quantized"] + held["scales"]
    return stored / (BYTES_OF_16_BITS * weights)


def _plain(value: Any) -> Any:
    """Files by their names alone."""
    if isinstance(value, tuple):
        return [str(item).rpartition("/")[2] if isinstance(item, str) else item for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
