"""Runs what is missing of an experiment: adapters first, then every arm on every test set."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from finlora.adapters.registry import AdapterRegistry
from finlora.bases.spec import BaseSpec
from finlora.config import Settings
from finlora.evaluation.answers import Mode
from finlora.evaluation.engine_answers import BASE, EngineAnswers, engine_answers
from finlora.evaluation.outcome import Outcome
from finlora.evaluation.runner import evaluate
from finlora.evaluation.test_sets import TestSet, load_test_set, refuse_equal_names
from finlora.model import base_spec
from finlora.quality.adapters import AdapterShop
from finlora.quality.agreement import trainers_labels
from finlora.quality.arms import QLORA, QLORA_NF4, Trial, choose_arms, trials
from finlora.quality.merging import merge
from finlora.quality.plan import Plan
from finlora.quality.results import ResultStore, Subject, missing

Report = Callable[[str], None]
MEMORY = "memory"
AGREEMENT = "agreement"
MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """A trial and what it said of every test set."""

    trial: Trial
    subject: Subject
    outcomes: dict[str, Outcome]


class Experiment:
    """Owns a folder with the adapters and results of its own."""

    def __init__(self, plan: Plan, folder: Path, report: Report) -> None:
        self.plan = plan
        self.spec: BaseSpec = base_spec(plan.model)
        self.store = ResultStore(folder / "results")
        self._folder = folder
        self._report = report
        self._registry = AdapterRegistry(folder / "adapters", who="finlora quality")
        self.test_sets = [self._test_set(name) for name in plan.tests]
        refuse_equal_names(self.test_sets)
        self._shop = AdapterShop(
            plan, self._registry, self.spec.fingerprint, self._held_out(), report
        )

    def run(self) -> None:
        """Everything that is missing. Raises FinLoRAError; what was done before is kept."""
        arms = choose_arms(self.plan.arms)
        wanted = [
            (trial, self._subject(trial))
            for trial in trials(arms, self.plan.seeds, all_seeds=self.plan.all_seeds)
        ]
        waiting = [pair for pair in wanted if any(missing(self.store, pair[1], self.test_sets))]
        for _, group in groupby(sorted(waiting, key=_engine_of), key=_engine_of):
            self._measure(list(group))
        self._compare_with_trainer()

    def measured(self) -> list[Measured]:
        """The trials that are complete, in the order of the table; nothing is trained for it."""
        arms = choose_arms(self.plan.arms)
        found = []
        for trial in trials(arms, self.plan.seeds, all_seeds=self.plan.all_seeds):
            subject = self._known_subject(trial)
            if subject is not None and not any(missing(self.store, subject, self.test_sets)):
                found.append(Measured(trial, subject, dict(self._outcomes(trial, subject))))
        return found

    def _outcomes(self, trial: Trial, subject: Subject) -> Iterator[tuple[str, Outcome]]:
        for test_set in self.test_sets:
            outcome = self.store.outcome(trial.arm.name, subject, test_set)
            if outcome is not None:
                yield test_set.name, outcome

    def _subject(self, trial: Trial) -> Subject:
        recipe = trial.arm.recipe
        adapter = None
        if recipe is not None and trial.seed is not None:
            adapter = self._shop.get(recipe, trial.seed)
        return Subject(
            self.spec.fingerprint, trial.arm.served_on, adapter, is_merged=trial.arm.is_merged
        )

    def _known_subject(self, trial: Trial) -> Subject | None:
        recipe = trial.arm.recipe
        if recipe is None or trial.seed is None:
            return self._subject(trial)
        return self._subject(trial) if self._shop.has(recipe, trial.seed) else None

    def _measure(self, group: list[tuple[Trial, Subject]]) -> None:
        """Trials that one engine can serve."""
        trial, subject = group[0]
        model, names = self.plan.model, [_model_name(s) for _, s in group]
        if subject.is_merged and subject.adapter is not None:
            folder = self._folder / "merged" / subject.adapter.digest
            model = str(merge(model, subject.adapter, self._registry, folder))
        settings = Settings(
            model=model,
            quantization=trial.arm.served_on,
            device=self.plan.device,
            max_model_len=min(MAX_MODEL_LEN, self.spec.max_position_embeddings),
        )
        self._report(f"serving {trial.arm.served_on}: {', '.join(dict.fromkeys(names))}")
        with engine_answers(settings, self._registry, list(dict.fromkeys(names))) as engine:
            self._keep_memory(subject, engine)
            for (trial, subject), name in zip(group, names, strict=True):
                self._ask(engine, name, trial, subject)
        shutil.rmtree(self._folder / "merged", ignore_errors=True)

    def _ask(self, engine: EngineAnswers, name: str, trial: Trial, subject: Subject) -> None:
        for test_set in missing(self.store, subject, self.test_sets):
            (outcome,) = evaluate(engine, [name], [test_set], Mode.SCORE)
            self.store.keep(outcome, subject, test_set)
            accuracy = sum(outcome.hits) / len(outcome.hits)
            self._report(
                f"  {trial.arm.title}, seed {trial.seed}: {accuracy:.3f} on {test_set.name} "
                f"({outcome.seconds:.0f} s)"
            )

    def _keep_memory(self, subject: Subject, engine: EngineAnswers) -> None:
        base = Subject(subject.base_fingerprint, subject.served_on, None)
        self.store.keep_facts(base, MEMORY, dict(engine.stats().base_bytes))

    def _compare_with_trainer(self) -> None:
        """Once, with the first seed on the first test set."""
        if QLORA_NF4 not in self.plan.arms:
            return
        seed, test_set = self.plan.seeds[0], self.test_sets[0]
        adapter = self._shop.get(QLORA, seed)
        subject = Subject(self.spec.fingerprint, QLORA.quantization, adapter)
        what = f"{AGREEMENT}/{test_set.sha256}"
        if self.store.facts(subject, what) is not None:
            return
        self._report("comparing the trainer's labels with the server's")
        labels = trainers_labels(
            self.plan, QLORA, seed, adapter, self._registry, test_set, self._held_out()
        )
        served = self.store.outcome(QLORA_NF4, subject, test_set)
        assert served is not None
        pairs = zip(labels, served.predicted, strict=False)
        same = sum(a == b for a, b in pairs)
        self.store.keep_facts(subject, what, {"same": same, "rows": len(labels)})

    def agreement(self) -> dict[str, int] | None:
        """Rows on which trainer and server agree, of how many; None when not compared yet."""
        if not self._shop.has(QLORA, self.plan.seeds[0]):
            return None
        adapter = self._shop.get(QLORA, self.plan.seeds[0])
        subject = Subject(self.spec.fingerprint, QLORA.quantization, adapter)
        return self.store.facts(subject, f"{AGREEMENT}/{self.test_sets[0].sha256}")

    def _test_set(self, name: str) -> TestSet:
        found = load_test_set(name, self.plan.data_dir, warn=self._report)
        return found.sample(self.plan.max_test_rows)

    def _held_out(self) -> list[str]:
        """The test rows as files, so that the trainer leaves their texts out."""
        folder = self._folder / "held_out"
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name in self.plan.tests:
            test_set = load_test_set(name, self.plan.data_dir)
            rows = ({"context": row.context, "target": row.target} for row in test_set.rows)
            file = folder / f"{test_set.name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            files.append(str(file.resolve()))
        return files


def _engine_of(pair: tuple[Trial, Subject]) -> tuple[str, str]:
    """What has to be the same for two trials to share an engine."""
    _, subject = pair
    merged = subject.adapter.digest if subject.is_merged and subject.adapter else ""
    return str(subject.served_on), merged


def _model_name(subject: Subject) -> str:
    return BASE if subject.adapter is None or subject.is_merged else subject.adapter.name
