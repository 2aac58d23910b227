"""Exact label probabilities from the serving engine: what a client would be answered."""

import math
import threading
from collections.abc import Iterator, Sequence

from finlora.adapters.adapter import Adapter
from finlora.adapters.label_task import softmax
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams

PARAMS = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0)
MAX_QUEUED = 256


class LabelScorer:
    """P(label) is the product over its tokens, end-of-sequence included, over all labels' sum."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._loaded = threading.Event()
        engine.adapters.on_loaded = self._loaded.set

    def probabilities(
        self,
        contexts: Sequence[list[int]],
        targets: Sequence[list[int]],
        adapter: Adapter | None,
    ) -> list[list[float]]:
        """For each context, the probability of each target (ends in end-of-sequence).

        Raises the FinLoRAError of the first request that fails.
        """
        sums = self._logprobs(
            [context + target for context in contexts for target in targets],
            [len(target) for _ in contexts for target in targets],
            adapter,
        )
        size = len(targets)
        return [softmax(sums[i : i + size]) for i in range(0, len(sums), size)]

    def target_logprobs(
        self,
        contexts: Sequence[list[int]],
        targets: Sequence[list[int]],
        adapter: Adapter | None,
    ) -> list[float]:
        """Log-probability of each context's own target. Raises as `probabilities` does."""
        return self._logprobs(
            [context + target for context, target in zip(contexts, targets, strict=True)],
            [len(target) for target in targets],
            adapter,
        )

    def _logprobs(
        self, sequences: list[list[int]], lengths: list[int], adapter: Adapter | None
    ) -> list[float]:
        """Log-probability of the last `length` tokens of every sequence."""
        sums = [0.0] * len(sequences)
        for start in range(0, len(sequences), MAX_QUEUED):
            chunk = range(start, min(start + MAX_QUEUED, len(sequences)))
            # All are checked before any is queued: one that is refused leaves nothing behind.
            requests = [
                self._engine.make_request(str(i), sequences[i], PARAMS, adapter=adapter)
                for i in chunk
            ]
            for request in requests:
                self._engine.add_request(request)
            for output in self._outputs():
                i = int(output.request_id)
                entries = (output.prompt_logprobs or ())[-lengths[i] :]
                sums[i] = math.fsum(entry.logprob for entry in entries if entry is not None)
        return sums

    def _outputs(self) -> Iterator[RequestOutput]:
        while self._engine.has_requests:
            self._loaded.clear()
            for output in self._engine.step():
                if output.error is not None:
                    self._engine.fail_all(output.error)
                    raise output.error
                yield output
            if self._engine.last_step_was_idle and self._engine.has_requests:
                self._loaded.wait()
