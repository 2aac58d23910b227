"""Where the time of a step goes, by group of operations: base only, 4 and 64 adapters, one client.

Drives an engine in this process over prompts like FinLoRA's: an instruction that all share, and
text of their own. Times are processor times of the one thread that computes, so that a busy machine
disturbs them less, and exclusive: what a group spends in another counts for the other. Kinds of
traffic alternate. Prints a Markdown table for each load: milliseconds a request.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np

from finlora.bases.quiet import quiet_libraries
from finlora.bench.driver import Mix, Work
from finlora.bench.subject import Subject, subject
from finlora.config import load_settings
from finlora.engine.grouped_attention import GroupedBatch
from finlora.engine.llama_layer import LlamaStack
from finlora.engine.lora import LoRALinear
from finlora.engine.native_attention import NativeBatch

INSTRUCTION_TOKENS, OWN_TOKENS = 25, 36
MAX_ADAPTERS = 64
GROUPS = (
    "base matmuls",
    "adapters",
    "attention",
    "norms, rotary, elementwise",
    "lm_head",
    "batch, scheduler, sampling, answers",
)
BASE, LORA, ATTENTION, ELEMENTWISE, HEAD, REST = GROUPS


@dataclass(slots=True)
class Ledger:
    """Seconds by group, each counted once: for the innermost group that is at work."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    def timed(self, group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time noted under the group."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(group)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return wrapper

    def _switch(self) -> None:
        now = time.thread_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@dataclass(frozen=True, slots=True)
class Load:
    """How many ask for how much."""

    num_clients: int
    max_tokens: int
    num_requests: int

    def __str__(self) -> str:
        clients = "1 client" if self.num_clients == 1 else f"{self.num_clients} clients"
        return f"{clients}, {self.max_tokens} new token{'s' * (self.max_tokens > 1)}"


LOADS = (Load(96, 3, 96), Load(32, 3, 64), Load(1, 1, 16))
Shares = dict[str, float]  # seconds by group


@contextmanager
def noted(made: Subject) -> Iterator[Ledger]:
    """Where the time of every group is noted."""
    ledger, runner = Ledger(), made.engine._runner
    model: Any = runner._model
    for layer in model.modules():
        if isinstance(layer, LlamaStack):
            # In one call nothing could be told apart: what that saves is not in these figures.
            layer.in_one_call._max_rows = 0
        if isinstance(layer, LoRALinear):
            slots = layer.layer_slots
            layer.base.forward = ledger.timed(BASE, layer.base.forward)
            slots.apply = ledger.timed(LORA, slots.apply)  # type: ignore[method-assign]
    head = model.get_output_embeddings()
    head.forward = ledger.timed(HEAD, head.forward)
    model.forward = ledger.timed(ELEMENTWISE, model.forward)
    made.engine.step = ledger.timed(REST, made.engine.step)  # type: ignore[method-assign]
    plain = {kind: kind.attend for kind in (GroupedBatch, NativeBatch)}
    for kind, attend in plain.items():
        kind.attend = ledger.timed(ATTENTION, attend)  # type: ignore[method-assign]
    yield ledger
    for kind, attend in plain.items():
        kind.attend = attend  # type: ignore[method-assign]


class Traffic:
    """Prompts that share an instruction and are never the same."""

    def __init__(self, made: Subject) -> None:
        self._made = made
        self._rng = np.random.default_rng(0)
        self._instruction = self._tokens(INSTRUCTION_TOKENS)

    def _tokens(self, count: int) -> list[int]:
        ids: list[int] = self._rng.integers(self._made.engine.vocab_size, size=count).tolist()
        return ids

    def run(self, load: Load, mix: Mix, num_requests: int) -> None:
        """Serve that many requests, the adapters of the mix in turn."""
        works = [
            Work(self._instruction + self._tokens(OWN_TOKENS), adapter, load.max_tokens)
            for adapter in islice(cycle(mix), num_requests)
        ]
        self._made.driver.closed_loop(works, load.num_clients)


def measure(
    traffic: Traffic, ledger: Ledger, load: Load, mixes: Sequence[Mix], rounds: int
) -> list[list[Shares]]:
    """Seconds a request of every round, by mix; who begins changes every round."""
    for mix in mixes:  # every adapter's instruction comes into the cache
        traffic.run(load, mix, max(load.num_clients, len(mix)))
    found: list[list[Shares]] = [[] for _ in mixes]
    order = list(range(len(mixes)))
    for _ in range(rounds):
        for index in order:
            ledger.seconds.clear()
            traffic.run(load, mixes[index], load.num_requests)
            found[index].append({g: ledger.seconds[g] / load.num_requests for g in GROUPS})
        order.reverse()
    return found


def table(load: Load, names: Sequence[str], found: Sequence[Sequence[Shares]]) -> str:
    """Medians over the rounds, and the share that is left of the first mix's rate."""
    lines = [f"| {load}: ms a request | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for group in GROUPS:
        cells = [f"{1e3 * median(shares[group] for shares in rounds):.2f}" for rounds in found]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    totals = [[sum(shares.values()) for shares in rounds] for rounds in found]
    lines.append(f"| all | {' | '.join(f'{1e3 * median(t):.1f}' for t in totals)} |")
    rates = [[own / other for own, other in zip(totals[0], t, strict=True)] for t in totals]
    cells = [f"{median(rate):.2f} ({min(rate):.2f} to {max(rate):.2f})" for rate in rates]
    lines.append(f"| beside {names[0]} (range of rounds) | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="as of finlora serve")
    options = parser.parse_args(argv)
    chosen = {} if options.model is None else {"model": options.model}
    settings = load_settings(max_loras=MAX_ADAPTERS, max_num_seqs=128, threads=1, **chosen)
    names = ("base only", "4 adapters", f"{MAX_ADAPTERS} adapters")
    with subject(settings, num_adapters=MAX_ADAPTERS) as made, noted(made) as ledger:
        made.driver.load(made.adapters)
        traffic = Traffic(made)
        mixes: list[Mix] = [(None,), made.adapters[:4], made.adapters]
        for load in LOADS:
            found = measure(traffic, ledger, load, mixes, options.rounds)
            sys.stdout.write(table(load, names, found) + "\n\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
