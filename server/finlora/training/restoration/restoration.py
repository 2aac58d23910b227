"""From a base and some text to adapters that restore it, measured on text they never saw."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finlora.training.adapter_files import AdapterFiles, adapter_files
from finlora.training.allocator import keep_freed_memory
from finlora.training.preparation import eos_token_id
from finlora.training.restoration.closed_form import Factors, correct
from finlora.training.restoration.distillation import DistillationStep, distil
from finlora.training.restoration.fidelity import fidelities
from finlora.training.restoration.findings import (
    NF4,
    RestorationFindings,
    closed_form_name,
    restored_name,
)
from finlora.training.restoration.moments import input_moments
from finlora.training.restoration.order import RestorationOrder
from finlora.training.restoration.pair import Pair, load_pair
from finlora.training.restoration.texts import Corpus, load_corpus, pack

Report = Callable[[str], None]
State = Mapping[str, Factors]
STEPS_BETWEEN_REPORTS = 10


@dataclass(frozen=True, slots=True)
class Restored:
    """One adapter for each rank, and what they achieve."""

    files: dict[int, AdapterFiles]
    findings: RestorationFindings
    pair: Pair


@dataclass(frozen=True, slots=True)
class _Batches:
    """Token ids [batch_size, length]."""

    train: list[Tensor]
    calibration: list[Tensor]
    held_out: list[Tensor]


def restore(order: RestorationOrder, report: Report) -> Restored:
    """Compute, train and measure; nothing is registered yet. Raises FinLoRAError."""
    keep_freed_memory()
    corpus = load_corpus(order.texts, order.held_out)
    report(f"loading {order.model} twice: in 16 bits and in NF4")
    rank = max(order.ranks)
    pair = load_pair(
        order.model, rank=rank, seed=order.seed, device=order.device, length=order.length
    )
    batches = _batches(order, corpus, pair)
    report(f"closed form of rank {rank} from {_num_tokens(batches.calibration)} tokens")
    start = _closed_form(pair, batches.calibration, rank)
    states = {closed_form_name(r): _first(start, r) for r in order.ranks}
    files = {}
    for r in order.ranks:
        report(f"distilling rank {r} over {_num_tokens(batches.train)} tokens")
        states[restored_name(r)] = _distilled(pair, states[closed_form_name(r)], order, r,
                                              batches.train, report)  # fmt: skip
        files[r] = adapter_files(pair.layers, order.config(r), pair.student.spec.name)
    report(f"measuring on {_num_tokens(batches.held_out)} tokens of held-out text")
    return Restored(files, _measure(order, corpus, pair, states, batches), pair)


def _batches(order: RestorationOrder, corpus: Corpus, pair: Pair) -> _Batches:
    base = pair.student
    to_sequences = partial(
        pack,
        tokenizer=base.tokenizer,
        eos=eos_token_id(base.tokenizer, base.spec.eos_token_ids),
        length=order.length,
    )
    train = to_sequences(corpus.train, max_sequences=order.max_sequences)
    calibration = train[: order.calibration_sequences]
    held_out = to_sequences(corpus.held_out, max_sequences=order.held_out_sequences)
    size = order.batch_size
    return _Batches(
        _shuffled(train, order), list(calibration.split(size)), list(held_out.split(size))
    )


def _shuffled(sequences: Tensor, order: RestorationOrder) -> list[Tensor]:
    """`num_steps` batches; a text that is too short is gone through again, in another order."""
    generator = random.Random(order.seed)
    rows: list[int] = []
    while len(rows) < order.max_sequences:
        rows += generator.sample(range(len(sequences)), len(sequences))
    return list(sequences[rows[: order.max_sequences]].split(order.batch_size))


def _closed_form(pair: Pair, batches: list[Tensor], rank: int) -> dict[str, Factors]:
    """Moments are those of the original's inputs: what the layers should be given."""
    return {
        name: correct(pair.error(name), moment, rank)
        for group, moment in input_moments(pair.teacher, batches)
        for name in group.names
    }


def _first(state: State, rank: int) -> dict[str, Factors]:
    return {name: factors.first(rank) for name, factors in state.items()}


def _distilled(
    pair: Pair,
    start: State,
    order: RestorationOrder,
    rank: int,
    batches: list[Tensor],
    report: Report,
) -> dict[str, Factors]:
    def tell(step: DistillationStep) -> None:
        if step.number % STEPS_BETWEEN_REPORTS == 0 or step.number == step.num_steps:
            report(
                f"  step {step.number} of {step.num_steps}: KL {step.kl:.4f}, "
                f"{step.tokens_per_second:.0f} tokens/s"
            )

    _enter(pair, start)
    distil(pair, batches, order.config(rank), tell)
    return {
        name: Factors(layer.a.detach().clone(), layer.b.detach().clone())
        for name, layer in pair.layers.items()
    }


@torch.no_grad()
def _enter(pair: Pair, state: State) -> None:
    """Layers take factors of any rank; their scaling stays 1."""
    for name, layer in pair.layers.items():
        layer.a.data = state[name].a.clone()
        layer.b.data = state[name].b.clone()


def _leave(pair: Pair) -> None:
    """The bare quantised base."""
    with torch.no_grad():
        for layer in pair.layers.values():
            layer.b.zero_()


def _measure(
    order: RestorationOrder,
    corpus: Corpus,
    pair: Pair,
    states: Mapping[str, State],
    batches: _Batches,
) -> RestorationFindings:
    variants: dict[str, Callable[[], None]] = {NF4: partial(_leave, pair)}
    variants |= {name: partial(_enter, pair, state) for name, state in states.items()}
    facts: dict[str, Any] = {
        "base": pair.student.spec.name,
        "base_fingerprint": pair.student.spec.fingerprint,
        "text_sha256": corpus.sha256(),
        "calibration_tokens": _num_tokens(batches.calibration),
        "train_tokens": _num_tokens(batches.train),
        "held_out_tokens": _num_tokens(batches.held_out),
        "num_steps": len(batches.train),
        "learning_rate": order.learning_rate,
        "seed": order.seed,
        "compute_dtype": str(pair.student.compute_dtype).removeprefix("torch."),
    }
    return RestorationFindings(facts, fidelities(pair, variants, batches.held_out))


def _num_tokens(batches: list[Tensor]) -> int:
    return sum(ids.numel() for ids in batches)
