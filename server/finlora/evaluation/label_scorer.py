"""Exact probabilities of labels and answers from the serving engine: what a client would get."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

from finlora.adapters.adapter import Adapter
from finlora.adapters.label_task import softmax
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.structured import ChoiceTree
from finlora.errors import FinLoRAError
from finlora.offline.runner import Runner
from finlora.offline.scoring import choice_logprobs, target_logprobs

Value = TypeVar("Value")


class LabelScorer:
    """P(label) is the product over its tokens, end-of-sequence included, over all labels' sum."""

    def __init__(self, engine: LLMEngine) -> None:
        self._runner = Runner(engine)

    def probabilities(
        self,
        contexts: Sequence[list[int]],
        targets: Sequence[list[int]],
        adapter: Adapter | None,
    ) -> list[list[float]]:
        """For each context, the probability of each target (ends in end-of-sequence).

        The end of a label is scored as the server does it: by the adapter's own end token, without
        one by the base's. Raises the FinLoRAError of the first request that fails.
        """
        choice = ChoiceTree([target[:-1] for target in targets])
        return [
            softmax(logprobs)
            for logprobs in _checked(choice_logprobs(self._runner, contexts, choice, adapter))
        ]

    def target_logprobs(
        self,
        contexts: Sequence[list[int]],
        targets: Sequence[list[int]],
        adapter: Adapter | None,
    ) -> list[float]:
        """Log-probability of each context's own target. Raises as `probabilities` does."""
        return list(_checked(target_logprobs(self._runner, contexts, targets, adapter)))


def _checked(results: Generator[Value | FinLoRAError]) -> Iterator[Value]:
    with closing(results):
        for result in results:
            if isinstance(result, FinLoRAError):
                raise result
            yield result
