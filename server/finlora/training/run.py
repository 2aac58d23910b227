"""One training run, from configuration to a judged result; registering it is a separate act."""

import hashlib
import json
from dataclasses import astuple, dataclass, replace
from typing import Any

from finlora.adapters.adapter import Manifest
from finlora.datasets.rows import Row
from finlora.errors import BaseModelError, FinLoRAError
from finlora.threads import set_threads
from finlora.training.adapter_files import AdapterFiles, adapter_files
from finlora.training.allocator import keep_freed_memory
from finlora.training.checkpoint import Checkpoint, Checkpoints, clear_checkpoints
from finlora.training.config import TrainingConfig
from finlora.training.evaluation import Evaluation, ValidationRows
from finlora.training.gate import InService, Verdict, decide, in_service
from finlora.training.held_out import doubt_about
from finlora.training.manifest import build_manifest
from finlora.training.optimization import optimizer_note
from finlora.training.order import Order, check_order
from finlora.training.preparation import Dataset, load_dataset
from finlora.training.progress import Progress
from finlora.training.result import Result, extra_files
from finlora.training.team import Team, joined
from finlora.training.trainer import Step, Trainer, TrainingHistory
from finlora.training.validation import Judgement, ValidationSet, validate
from finlora.training.workshop import Workshop, prepare


class RunStoppedError(FinLoRAError):
    """The user stopped the run; it can go on."""


class RunLostError(FinLoRAError):
    """The user stopped the run, and its state could not be kept."""


@dataclass(frozen=True, slots=True)
class _Learned:
    """What training left; the model it was trained on is gone by then."""

    files: AdapterFiles
    manifest: Manifest
    history: TrainingHistory
    before: InService
    valid: ValidationSet
    doubts: dict[str, str]  # why earlier versions may have learned rows that judge
    is_kept: bool  # whether a checkpoint of the end is there


def run(order: Order, progress: Progress) -> Result | None:
    """Train and judge; nothing is registered yet. Raises FinLoRAError, also RunStoppedError.

    None: another process of the team judges what all have learned.
    """
    keep_freed_memory()
    set_threads(order.threads)
    dataset = load_dataset(order.config, order.folder)
    check_order(order, dataset)
    progress.dataset(dataset)
    with joined(order.device) as (team, device):
        order = replace(order, device=device)
        learned = _learn(order, dataset, progress, team)
    if not team.leads:
        return None
    if order.output is not None:
        learned.files.save(order.output)  # before the scores, which take minutes
    _check_stopped(order, learned, "before it was scored")
    progress.phase(f"scoring {len(learned.valid.whole)} validation rows on the serving engine")
    judgement = validate(
        learned.files,
        learned.manifest,
        order.config,
        learned.valid,
        served=learned.before.adapter,
        device=order.device,
        threads=order.threads,
    )
    progress.scores(judgement.scores)
    _check_stopped(order, learned, "before it was registered")
    verdict = decide(judgement, learned.before, order.rules, list(learned.doubts.values()))
    result = _result(order, dataset, learned, judgement, verdict)
    if order.output is not None:
        result.save(order.output)
    return result


def _check_stopped(order: Order, learned: _Learned, moment: str) -> None:
    if order.stopped():
        raise _stopped(moment, is_kept=learned.is_kept)


def _stopped(moment: str, *, is_kept: bool) -> FinLoRAError:
    if is_kept:
        return RunStoppedError(f"stopped {moment}; --resume goes on")
    return RunLostError(f"stopped {moment}, and its state could not be kept")


def open_workshop(order: Order, dataset: Dataset) -> Workshop:
    """The base as it will be trained. Raises FinLoRAError."""
    try:
        return prepare(order.config, dataset.split, order.registry, device=order.device)
    except BaseModelError as error:
        raise BaseModelError(f"{error}; another base: --base-model NAME_OR_FOLDER") from error


def _learn(order: Order, dataset: Dataset, progress: Progress, team: Team) -> _Learned:
    config = order.config
    if team.size > 1:
        progress.phase(f"{team.size} processes: each step has the batches of all of them")
    progress.phase(f"loading {config.base_reference} in {config.quantization}")
    workshop = open_workshop(order, dataset)
    progress.workshop(workshop)
    if note := optimizer_note(config, workshop.base.device):
        progress.phase(note)
    history, is_kept = _train(order, dataset, workshop, progress, team)
    progress.trained(history, config.eval_metric)
    spec = workshop.base.spec
    before = InService()
    if order.registered:
        before = in_service(order.registry, order.name, spec, config.quantization)
    doubts = _doubts(order, dataset, workshop, before)
    for doubt in doubts.values():
        progress.phase(doubt)
    return _Learned(
        files=adapter_files(workshop.layers, config, spec.name),
        manifest=build_manifest(config, dataset, workshop, history),
        history=history,
        before=before,
        valid=_validation_set(dataset, workshop),
        doubts=doubts,
        is_kept=is_kept,
    )


def _doubts(
    order: Order, dataset: Dataset, workshop: Workshop, before: InService
) -> dict[str, str]:
    served = None if before.adapter is None else before.adapter.reference
    versions = {"initial_adapter": workshop.initial_adapter, "version_in_service": served}
    doubts = {
        role: doubt_about(reference, order.registry, order.config, dataset)
        for role, reference in versions.items()
    }
    return {role: doubt for role, doubt in doubts.items() if doubt is not None}


def _train(
    order: Order, dataset: Dataset, workshop: Workshop, progress: Progress, team: Team
) -> tuple[TrainingHistory, bool]:
    """What was done, and whether a checkpoint of the end is there."""
    config, model = order.config, workshop.base.model
    trainer = Trainer(
        model, workshop.layers, config, checkpointing=workshop.checkpointing, team=team
    )
    checkpoints = Checkpoints(order.checkpoints, _run_hash(config, dataset, workshop, team))
    if not order.resume:
        if team.leads:
            clear_checkpoints(order.checkpoints)
    elif found := checkpoints.newest(progress.phase):
        trainer.restore(found.history, found.tensors)
        progress.phase(f"going on after step {len(found.history.steps)}")
    else:
        progress.phase("no checkpoint to resume from: starting anew")

    def save() -> bool:
        """Whether the first process, which alone writes, could."""
        is_kept = not team.leads or _save(checkpoints, trainer, progress)
        return not team.any(not is_kept)

    def on_step(step: Step) -> None:
        progress.step(step)
        stopped = team.any(order.stopped())
        if stopped or (step.number % config.checkpoint_steps == 0 and step.number < step.num_steps):
            is_kept = save()
            if stopped:
                moment = f"after step {step.number} of {step.num_steps}"
                raise _stopped(moment, is_kept=is_kept)

    rows = _rows_to_watch(dataset, workshop, config)

    def evaluate(step: int) -> Evaluation:
        return rows.evaluate(model, step)

    history = trainer.fit(
        lambda epoch: workshop.examples.of_epoch(epoch, config),
        on_step=on_step,
        evaluate=evaluate,
        on_evaluation=progress.evaluation,
    )
    # Judging takes minutes, in which the run may be stopped or killed.
    return history, save()


def _rows_to_watch(dataset: Dataset, workshop: Workshop, config: TrainingConfig) -> ValidationRows:
    """The first of the rows held out, which are in no order."""
    labels = dataset.labels if config.eval_metric != "loss" else []
    targets = [workshop.encoder.encode_target(label) for label in labels]
    return ValidationRows(workshop.valid.whole[: config.eval_rows], labels, targets)


def _validation_set(dataset: Dataset, workshop: Workshop) -> ValidationSet:
    return ValidationSet(
        workshop.valid.whole,
        workshop.valid.stripped,
        [row.target for row in workshop.valid.rows],
        dataset.labels,
        [workshop.encoder.encode_target(label) for label in dataset.labels],
    )


def _save(checkpoints: Checkpoints, trainer: Trainer, progress: Progress) -> bool:
    """A full disk costs the checkpoint, not the run."""
    try:
        checkpoints.save(Checkpoint(trainer.history, trainer.tensors()))
    except OSError as error:
        progress.phase(f"no checkpoint could be written: {error}")
        return False
    return True


def _run_hash(config: TrainingConfig, dataset: Dataset, workshop: Workshop, team: Team) -> str:
    """SHA-256 over everything that decides what is learned."""
    words = {"description", "licence", "sources", "task", "checkpoint_steps"}
    facts: dict[str, Any] = {
        "config": config.model_dump(exclude={"dataset_path", "val_dataset_path", *words}),
        "data": [_rows_hash(dataset.split.train), _rows_hash(dataset.split.valid)],
        "base": workshop.base.spec.fingerprint,
        "initial_adapter": workshop.initial_adapter,
        "num_processes": team.size,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _rows_hash(rows: list[Row]) -> str:
    """In their order, which decides the batches."""
    return hashlib.sha256(json.dumps([astuple(row) for row in rows]).encode()).hexdigest()


def _result(
    order: Order, dataset: Dataset, learned: _Learned, judgement: Judgement, verdict: Verdict
) -> Result:
    scores = judgement.scores | ({"doubts": learned.doubts} if learned.doubts else {})
    judged: dict[str, Any] = {"scores": scores}
    if judgement.calibration is not None:
        judged["temperature"] = judgement.calibration.temperature
    manifest = learned.manifest.model_copy(update=judged)
    extra = extra_files(
        order.name, order.config, manifest, order.command, dataset, learned.history, verdict
    )
    return Result(learned.files, manifest, extra, verdict)
