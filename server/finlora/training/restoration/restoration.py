"""From a base and some text to adapters that restore it, measured on text they never saw."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finlora.adapters.peft_config import parse_config
from finlora.adapters.validation import parse_weights
from finlora.model import LoadedBase
from finlora.training.adapter_files import AdapterFiles, adapter_files
from finlora.training.allocator import keep_freed_memory
from finlora.training.preparation import eos_token_id
from finlora.training.restoration.closed_form import Factors, check_rank, corrections
from finlora.training.restoration.distillation import DistillationStep, distil
from finlora.training.restoration.fidelity import ORIGINAL, Fidelity, fidelities
from finlora.training.restoration.findings import (
    NF4,
    RestorationFindings,
    closed_form_name,
    restored_name,
)
from finlora.training.restoration.order import RestorationOrder
from finlora.training.restoration.pair import Pair, load_pair
from finlora.training.restoration.texts import Corpus, load_corpus, pack

Report = Callable[[str], None]
State = Mapping[str, Factors]
STEPS_BETWEEN_REPORTS = 10


@dataclass(frozen=True, slots=True)
class Restored:
    """The adapter of one rank, and how near it brings the base to the original."""

    rank: int
    files: AdapterFiles
    findings: RestorationFindings


class Restoration:
    """Both models in memory, the text in tokens, and what the quantisation error itself gives."""

    def __init__(self, order: RestorationOrder, report: Report) -> None:
        """Raises FinLoRAError."""
        keep_freed_memory()
        self._order = order
        self._report = report
        self._corpus = load_corpus(order.texts, order.held_out)
        report(f"loading {order.model} twice: in 16 bits and in NF4")
        rank = max(order.ranks)
        self._pair = load_pair(order.model, rank=rank, seed=order.seed, device=order.device)
        check_rank(self.base.spec.linear_layers, rank)
        self._batches = _batches(order, self._corpus, self._pair)
        self._fidelities: dict[str, Fidelity] = {}
        self._start = self._closed_form(rank)

    @property
    def base(self) -> LoadedBase:
        """The quantised one."""
        return self._pair.student

    def each(self) -> Iterator[Restored]:
        """One rank after the other, each measured beside the bare base. Nothing is registered."""
        self._measure({NF4: partial(_leave, self._pair)})
        for rank in self._order.ranks:
            yield self._restored(rank)

    def findings(self) -> RestorationFindings:
        """Of all that was measured so far, the untrained starts first."""
        kinds = (closed_form_name, restored_name)
        names = [kind(rank) for kind in kinds for rank in sorted(self._order.ranks)]
        known = [name for name in (ORIGINAL, NF4, *names) if name in self._fidelities]
        return RestorationFindings(self._facts(), {name: self._fidelities[name] for name in known})

    def _restored(self, rank: int) -> Restored:
        pair, batches = self._pair, self._batches
        self._report(f"distilling rank {rank} over {_num_tokens(batches.train)} tokens")
        _enter(pair, {name: factors.first(rank) for name, factors in self._start.items()})
        start = self._files(rank)
        distil(pair, batches.train, self._order.config(rank), self._tell)
        files = self._files(rank)
        # What is served is what the file holds, in bfloat16; so that is what is measured.
        self._measure(
            {
                closed_form_name(rank): partial(_enter, pair, _stored(start, pair)),
                restored_name(rank): partial(_enter, pair, _stored(files, pair)),
            }
        )
        return Restored(rank, files, self.findings())

    def _files(self, rank: int) -> AdapterFiles:
        """The layers as they stand."""
        pair = self._pair
        return adapter_files(pair.layers, self._order.config(rank), pair.student.spec.name)

    def _closed_form(self, rank: int) -> State:
        """Moments are those of the original's inputs: what the layers should be given."""
        batches, teacher = self._batches.calibration, self._pair.teacher
        self._report(f"closed form of rank {rank} from {_num_tokens(batches)} tokens")
        layers = teacher.spec.linear_layers
        return dict(corrections(teacher, layers, batches, self._pair.error, rank))

    def _measure(self, variants: Mapping[str, Callable[[], None]]) -> None:
        num_tokens = _num_tokens(self._batches.held_out)
        self._report(f"measuring {', '.join(variants)} on {num_tokens} held-out tokens")
        self._fidelities |= fidelities(self._pair, variants, self._batches.held_out)

    def _tell(self, step: DistillationStep) -> None:
        if step.number % STEPS_BETWEEN_REPORTS == 0 or step.number == step.num_steps:
            self._report(
                f"  step {step.number} of {step.num_steps}: KL {step.kl:.4f}, "
                f"{step.tokens_per_second:.0f} tokens/s"
            )

    def _facts(self) -> dict[str, Any]:
        spec, batches = self._pair.student.spec, self._batches
        return {
            "base": spec.name,
            "base_fingerprint": spec.fingerprint,
            "text_sha256": self._corpus.sha256(),
            "calibration_tokens": _num_tokens(batches.calibration),
            "train_tokens": _num_tokens(batches.train),
            "held_out_tokens": _num_tokens(batches.held_out),
            "num_steps": len(batches.train),
            "learning_rate": self._order.learning_rate,
            "seed": self._order.seed,
            "compute_dtype": str(self._pair.student.compute_dtype).removeprefix("torch."),
        }


@dataclass(frozen=True, slots=True)
class _Batches:
    """Token ids [batch_size, length]."""

    train: list[Tensor]
    calibration: list[Tensor]
    held_out: list[Tensor]


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


def _stored(files: AdapterFiles, pair: Pair) -> State:
    config, base = parse_config(files.config), pair.student
    layers = parse_weights(config, files.weights, base.spec, max_rank=config.r)
    return {
        name: Factors(layer.a.float().to(base.device), layer.b.float().to(base.device))
        for name, layer in layers.items()
    }


def _num_tokens(batches: list[Tensor]) -> int:
    return sum(ids.numel() for ids in batches)
