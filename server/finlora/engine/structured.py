"""Answers that must be one of some labels: the tree of the labels' tokens. No logits, no text.

Labels that begin alike share nodes. Node 0 is where the answer begins; every other node is a token,
and parents have lower numbers than their children.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finlora.errors import InvalidSamplingParamsError

END = -1  # what follows a whole label; which token that is depends on the adapter


class ChoiceTree:
    """The labels that an answer is chosen from, each a sequence of token ids."""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        """Raises InvalidSamplingParamsError: no labels, an empty one, or two that are the same."""
        self.labels = tuple(map(tuple, labels))
        self._token_ids = [END]
        self._parents = [0]
        self._children: list[dict[int, int]] = [{}]
        _check(bool(self.labels), "must have at least one label")
        for label in self.labels:
            self._add(label)

    def __repr__(self) -> str:
        return f"ChoiceTree({self.labels})"

    @property
    def num_branches(self) -> int:
        """Tokens of all labels, shared beginnings counted once: the nodes but node 0."""
        return len(self._token_ids) - 1

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer, its end token included."""
        return max(map(len, self.labels)) + 1

    def token_id(self, node: int) -> int:
        """The token of a node other than 0."""
        return self._token_ids[node]

    def path(self, node: int) -> list[int]:
        """The nodes from the first token of an answer to this one; empty for node 0."""
        nodes = []
        while node:
            nodes.append(node)
            node = self._parents[node]
        return nodes[::-1]

    def allowed(self, node: int) -> list[int]:
        """Tokens that may follow a node, in a fixed order; END where a label is whole."""
        return list(self._children[node])

    def child(self, node: int, token_id: int) -> int:
        """The node that an allowed token leads to; END behind a whole label."""
        return self._children[node][token_id]

    def node_after(self, token_ids: Sequence[int]) -> int:
        """The node at which the beginning of a label ends."""
        node = 0
        for token_id in token_ids:
            node = self._children[node][token_id]
        return node

    def forced(self, node: int) -> list[int]:
        """The tokens that can only follow a node, one after the other; END may be the last."""
        token_ids = []
        while node != END and len(self._children[node]) == 1:
            ((token_id, node),) = self._children[node].items()
            token_ids.append(token_id)
        return token_ids

    def label_logprobs(self, scores: Sequence["NodeScores"]) -> tuple[float, ...]:
        """Log-probability of each label and its end, in the order of `labels`.

        `scores` has every node's. A label's probability is the product over its tokens and the
        end token, given the prompt.
        """
        return tuple(self._label_logprob([*label, END], scores) for label in self.labels)

    def _label_logprob(self, tokens: list[int], scores: Sequence["NodeScores"]) -> float:
        node = 0
        logprobs = []
        for token_id in tokens:
            logprobs.append(scores[node].logprobs[self.allowed(node).index(token_id)])
            node = self.child(node, token_id)
        return math.fsum(logprobs)

    def _add(self, label: Sequence[int]) -> None:
        _check(bool(label), "must not have a label without tokens")
        node = 0
        for token_id in label:
            child = self._children[node].get(token_id)
            if child is None:
                child = len(self._token_ids)
                self._children[node][token_id] = child
                self._token_ids.append(token_id)
                self._parents.append(node)
                self._children.append({})
            node = child
        _check(END not in self._children[node], "must not have two labels of the same tokens")
        self._children[node][END] = END


@dataclass(frozen=True, slots=True)
class NodeScores:
    """What the model says may follow a node; in the order of `ChoiceTree.allowed`."""

    logits: tuple[float, ...]
    logprobs: tuple[float, ...]  # over the whole vocabulary
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), likeliest first


def normalised(logprobs: Sequence[float]) -> list[float]:
    """Log-probabilities of alternatives, shifted so that their probabilities add up to 1."""
    highest = max(logprobs)
    if highest == -math.inf:
        return list(logprobs)
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
    return [value - total for value in logprobs]


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise InvalidSamplingParamsError(f"choice {what}", param="choice")
