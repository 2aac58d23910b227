"""Judges a learned adapter on the serving engine, before anything is registered."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from finlora.adapters.adapter import Adapter, Manifest
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.engine.factory import build_engine
from finlora.engine.llm_engine import LLMEngine
from finlora.evaluation.calibration import Calibration, calibrate
from finlora.evaluation.label_scorer import LabelScorer
from finlora.evaluation.paired_test import PairedTest, compare
from finlora.evaluation.scores import Scores, score
from finlora.metrics import Metrics
from finlora.training.adapter_files import AdapterFiles
from finlora.training.batches import Example
from finlora.training.config import TrainingConfig

MAX_COMPARED_ROWS = 300  # of the comparisons beside the adapter's own score
MIN_MODEL_LEN = 128  # the engine checks itself with prompts of its own


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """The rows held out, tokenised, and what they are answered with."""

    whole: Sequence[Example]
    stripped: Sequence[Example]
    answers: Sequence[str]
    labels: Sequence[str]  # empty: the answers are free text
    targets: Sequence[list[int]]  # token ids of the labels

    @property
    def max_tokens(self) -> int:
        """Longest prompt with its longest answer."""
        longest = max(map(len, self.targets), default=0)
        return max(max(e.num_tokens, len(e.context) + longest) for e in self.whole)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the serving engine said."""

    scores: dict[str, Any]
    accuracy: float | None  # None: the answers are free text
    against_served: PairedTest | None  # None: nothing is served that could be compared
    calibration: Calibration | None = None  # None: free text, or too few rows


def validate(
    files: AdapterFiles,
    manifest: Manifest,
    config: TrainingConfig,
    rows: ValidationSet,
    *,
    served: Adapter | None,
    device: str,
    threads: int = 0,
) -> Judgement:
    """Scores of the adapter, the bare base and the version in service. Raises FinLoRAError."""
    ranks = [config.lora_r, *([served.config.r] if served else [])]
    settings = Settings(
        model=config.base_reference,
        quantization=config.quantization,
        device=device,
        threads=threads,
        max_loras=len(ranks),
        max_lora_rank=max(ranks),
        max_model_len=max(rows.max_tokens + 1, MIN_MODEL_LEN),
    )
    with tempfile.TemporaryDirectory() as folder:
        registry = AdapterRegistry(Path(folder))
        candidate = registry.register(
            "candidate", config.variant, files.config, files.weights, manifest
        )
        with _engine(settings, registry) as engine:
            judge = _LabelJudge if rows.labels else _LossJudge
            return judge(LabelScorer(engine), rows).judge(candidate, served)


@contextmanager
def _engine(settings: Settings, registry: AdapterRegistry) -> Iterator[LLMEngine]:
    engine = build_engine(settings, registry, Metrics(CollectorRegistry()))
    try:
        yield engine
    finally:
        engine.close()


class _LabelJudge:
    """Chooses labels by exact probability: a label's tokens, then end-of-sequence."""

    def __init__(self, scorer: LabelScorer, rows: ValidationSet) -> None:
        self._scorer = scorer
        self._rows = rows

    def judge(self, candidate: Adapter, served: Adapter | None) -> Judgement:
        """All comparisons."""
        rows = self._rows
        few, few_stripped = rows.whole[:MAX_COMPARED_ROWS], rows.stripped[:MAX_COMPARED_ROWS]
        chances = self._chances(rows.whole, candidate)
        chosen = self._likeliest(chances)
        found = {
            "adapter": self._score(chosen),
            "adapter_on_compared_rows": self._score(chosen[: len(few)]),
            "adapter_without_trailing_space": self._score(self._choose(few_stripped, candidate)),
            "bare_base": self._score(self._choose(few, None)),
        }
        test = None
        if served is not None:
            before = self._choose(rows.whole, served)
            found["version_in_service"] = self._score(before)
            test = compare(self._hits(chosen), self._hits(before))
        scores: dict[str, Any] = {name: scores.as_dict() for name, scores in found.items()}
        calibration = calibrate(chances, [rows.labels.index(a) for a in rows.answers])
        if calibration is not None:
            scores["calibration"] = calibration.as_dict()
        how = {"how": "exact label probabilities from the serving engine"}
        return Judgement(how | scores, found["adapter"].accuracy, test, calibration)

    def _choose(self, examples: Sequence[Example], adapter: Adapter | None) -> list[str]:
        return self._likeliest(self._chances(examples, adapter))

    def _chances(self, examples: Sequence[Example], adapter: Adapter | None) -> list[list[float]]:
        """[rows, labels], as the model has them: the candidate has no temperature yet."""
        contexts = [example.context for example in examples]
        return self._scorer.probabilities(contexts, self._rows.targets, adapter)

    def _likeliest(self, chances: list[list[float]]) -> list[str]:
        labels = self._rows.labels
        return [max(zip(chance, labels, strict=True))[1] for chance in chances]

    def _hits(self, chosen: list[str]) -> list[bool]:
        return [a == b for a, b in zip(chosen, self._rows.answers, strict=True)]

    def _score(self, chosen: list[str]) -> Scores:
        return score(self._rows.labels, self._rows.answers[: len(chosen)], chosen)


class _LossJudge:
    """Free text: the mean negative log-likelihood of the answers' tokens."""

    def __init__(self, scorer: LabelScorer, rows: ValidationSet) -> None:
        self._scorer = scorer
        self._rows = rows

    def judge(self, candidate: Adapter, served: Adapter | None) -> Judgement:
        """All comparisons. Two versions are compared by which makes a row's answer likelier."""
        learned, bare = self._logprobs(candidate), self._logprobs(None)
        scores: dict[str, Any] = {
            "how": "mean negative log-likelihood of the answers' tokens on the serving engine",
            "num_rows": len(learned),
            "loss": self._loss(learned),
            "bare_base_loss": self._loss(bare),
        }
        if served is None:
            return Judgement(scores, None, None)
        before = self._logprobs(served)
        scores["version_in_service_loss"] = self._loss(before)
        pairs = list(zip(learned, before, strict=True))
        return Judgement(
            scores, None, compare([n > o for n, o in pairs], [o > n for n, o in pairs])
        )

    def _logprobs(self, adapter: Adapter | None) -> list[float]:
        examples = self._rows.whole
        return self._scorer.target_logprobs(
            [e.context for e in examples], [e.target for e in examples], adapter
        )

    def _loss(self, logprobs: list[float]) -> float:
        return round(-sum(logprobs) / sum(len(e.target) for e in self._rows.whole), 4)
