"""How near a quantised base is to its original on held-out text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from finlora.training.restoration.pair import Pair

ORIGINAL = "16-bit"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Means over the tokens of held-out text."""

    perplexity: float
    kl: float  # nats a token, of the student's distribution from the original's
    agreement: float  # share of positions with the same likeliest token

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


class _Sums:
    """Adds up over batches."""

    def __init__(self) -> None:
        self._loss = self._kl = self._same = 0.0
        self._tokens = self._targets = 0

    def add(self, logprobs: Tensor, original: Tensor, ids: Tensor) -> None:
        """Log-probabilities [B * L, vocabulary] of a batch [B, L]."""
        rows = logprobs.view(*ids.shape, -1)[:, :-1]
        self._loss -= rows.gather(-1, ids[:, 1:, None].to(rows.device)).sum().item()
        self._targets += ids[:, 1:].numel()
        self._kl += divergence(logprobs, original).item() * len(logprobs)
        self._same += (logprobs.argmax(-1) == original.argmax(-1)).sum().item()
        self._tokens += len(logprobs)

    def mean(self) -> Fidelity:
        """Over all that was added."""
        return Fidelity(
            perplexity=math.exp(self._loss / self._targets),
            kl=self._kl / self._tokens,
            agreement=self._same / self._tokens,
        )


def divergence(logprobs: Tensor, original: Tensor) -> Tensor:
    """Mean KL(original || student) over rows, in nats."""
    kl: Tensor = (original.exp() * (original - logprobs)).sum(-1).mean()
    return kl


@torch.no_grad()
def fidelities(
    pair: Pair, variants: Mapping[str, Callable[[], None]], batches: Sequence[Tensor]
) -> dict[str, Fidelity]:
    """Of the original and of every variant; a variant's function brings the layers into its state.

    The original's logits are computed once for all.
    """
    sums = {name: _Sums() for name in (ORIGINAL, *variants)}
    for ids in batches:
        original = pair.teacher_logprobs(ids)
        sums[ORIGINAL].add(original, original, ids)
        for name, enter in variants.items():
            enter()
            sums[name].add(pair.student_logprobs(ids), original, ids)
    return {name: found.mean() for name, found in sums.items()}
