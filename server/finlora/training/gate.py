"""Decides whether a new version takes over the name: good enough, and not worse than before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_compatible
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.spec import BaseSpec
from finlora.config import Quantization
from finlora.errors import AdapterError, AdapterNotFoundError
from finlora.evaluation.paired_test import PairedTest
from finlora.training.validation import Judgement

MIN_ROWS = 200


@dataclass(frozen=True, slots=True)
class GateRules:
    """What the user demands of a version before it is served."""

    min_accuracy: float | None = None
    when_unsure: Literal["keep", "promote"] = "keep"  # too few rows, or nothing to compare with


@dataclass(frozen=True, slots=True)
class InService:
    """What the name means now, and why it cannot be compared with, if so."""

    adapter: Adapter | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a version is promoted, and why."""

    promoted: bool
    reason: str
    test: PairedTest | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the metrics file."""
        facts: dict[str, Any] = {"promoted": self.promoted, "reason": self.reason}
        if self.test is not None:
            facts["mcnemar"] = {
                "num_rows": self.test.num_rows,
                "num_gained": self.test.num_gained,
                "num_lost": self.test.num_lost,
                "p_value": self.test.p_value,
            }
        return facts


def in_service(
    registry: AdapterRegistry, name: str, spec: BaseSpec, quantization: Quantization
) -> InService:
    """The version that the name means now, where this base can run it."""
    try:
        adapter = registry.resolve(name)
        check_compatible(adapter, spec, quantization, strict=True)
        registry.read(adapter)
    except AdapterNotFoundError:
        return InService()
    except AdapterError as error:
        return InService(problem=str(error))
    return InService(adapter)


def decide(
    judgement: Judgement, before: InService, rules: GateRules, doubts: Sequence[str] = ()
) -> Verdict:
    """The rules in their order: accuracy, then the comparison on the same rows.

    `doubts` say why one of the two may have learned some of these rows.
    """
    test, accuracy = judgement.against_served, judgement.accuracy
    if rules.min_accuracy is not None and (accuracy is None or accuracy < rules.min_accuracy):
        reason = f"accuracy {accuracy or 0:.4f} is below --min-accuracy {rules.min_accuracy}"
        return Verdict(False, reason, test)
    if before.problem is not None:
        return _unsure(f"the version in service cannot be compared: {before.problem}", rules, None)
    if doubts and (test is not None or rules.min_accuracy is not None):
        return _unsure("; ".join(doubts), rules, test)
    if test is None:
        return Verdict(True, "nothing was served under this name")
    if test.num_rows < MIN_ROWS:
        reason = f"not enough data: {test.num_rows} validation rows, {MIN_ROWS} are needed"
        return _unsure(reason, rules, test)
    figures = f"{test.num_gained} rows better, {test.num_lost} worse, p = {test.p_value:.2g}"
    if test.is_worse:
        return Verdict(False, f"worse than the version in service: {figures}", test)
    return Verdict(True, f"not worse than the version in service: {figures}", test)


def _unsure(reason: str, rules: GateRules, test: PairedTest | None) -> Verdict:
    return Verdict(rules.when_unsure == "promote", f"{reason} (--when-unsure)", test)
