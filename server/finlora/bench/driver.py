"""Drives an engine in this thread: batches to their end, single decode steps, closed loops."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice

import numpy as np

from finlora.adapters.adapter import Adapter
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import Request, RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import ConfigError

Mix = Sequence[Adapter | None]  # requests take these in turn


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt, who answers it, and how many tokens are made."""

    prompt_token_ids: list[int]
    adapter: Adapter | None
    max_tokens: int


@dataclass(slots=True)
class LoopTally:
    """What a closed loop took and found."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


@dataclass(slots=True)
class DecodeTimes:
    """Seconds of each step, and tokens of context that its sequences had in the mean."""

    seconds: list[float] = field(default_factory=list)
    contexts: list[float] = field(default_factory=list)


class Driver:
    """Owns the stepping of one engine; nothing else may drive it meanwhile."""

    def __init__(self, engine: LLMEngine, *, seed: int = 0) -> None:
        self.engine = engine
        self._rng = np.random.default_rng(seed)
        self._ids = count()
        self._loaded = threading.Event()
        engine.adapters.on_loaded = self._loaded.set

    def random_work(self, num_tokens: int, max_tokens: int, adapter: Adapter | None) -> Work:
        """A prompt of random token ids."""
        ids = self._rng.integers(self.engine.vocab_size, size=num_tokens).tolist()
        return Work(ids, adapter, max_tokens)

    def random_batch(self, size: int, num_tokens: int, max_tokens: int, mix: Mix) -> list[Work]:
        """`size` random prompts, spread over the mix in turn."""
        return [self.random_work(num_tokens, max_tokens, a) for a in islice(cycle(mix), size)]

    def load(self, adapters: Mix) -> None:
        """Bring adapters into RAM and slots by one token each."""
        self.run([self.random_work(4, 1, adapter) for adapter in adapters])

    def run(self, works: Iterable[Work]) -> float:
        """Run all at once to the end: seconds. Nothing comes from the prefix cache."""
        for work in works:
            self._add(work, salted=True)
        begin = time.perf_counter()
        for _ in self._outputs():
            pass
        return time.perf_counter() - begin

    def decode_steps(
        self, size: int, num_tokens: int, mix: Mix, *, warm_up: int, num_steps: int
    ) -> DecodeTimes:
        """Time steps in which each of `size` sequences makes one token, prefill being over.

        Raises ConfigError where a sequence would end before the last step.
        """
        self._check_room(num_tokens + 1, warm_up + num_steps)
        room = self.engine.max_model_len - num_tokens
        works = self.random_batch(size, num_tokens, room, mix)
        requests = [self._add(work, salted=True) for work in works]
        try:
            while not all(request.output_token_ids for request in requests):
                self._step()
            # The first ones went on while the last ones' prompts were computed.
            self._check_room(max(r.num_tokens for r in requests), warm_up + num_steps)
            for _ in range(warm_up):
                self._step()
            return self._timed_steps(requests, num_steps)
        finally:
            for request in requests:
                self.engine.abort_request(request.request_id)

    def closed_loop(self, works: Iterable[Work], num_clients: int) -> LoopTally:
        """Keep `num_clients` requests in flight until all are done; the prefix cache may help."""
        remaining, begun = iter(works), {}
        tally = LoopTally()
        start = time.perf_counter()
        for work in islice(remaining, num_clients):
            begun[self._add(work).request_id] = time.perf_counter()
        for output in self._outputs():
            if output.finish_reason is None:
                continue
            tally.latencies.append(time.perf_counter() - begun.pop(output.request_id))
            tally.num_prompt_tokens += output.num_prompt_tokens
            tally.num_cached_tokens += output.num_cached_tokens
            for work in islice(remaining, 1):
                begun[self._add(work).request_id] = time.perf_counter()
        tally.seconds = time.perf_counter() - start
        return tally

    def wait_for_load(self) -> None:
        """Sleep until the loader has brought an adapter (or failed to)."""
        self._loaded.wait()
        self._loaded.clear()

    def _check_room(self, context: int, num_steps: int) -> None:
        limit = self.engine.max_model_len
        if context + num_steps > limit:
            raise ConfigError(
                f"{context} tokens of context and {num_steps} decode steps do not fit a "
                f"max_model_len of {limit}: shorten --context or --num-steps, or raise "
                "--max-model-len"
            )

    def _timed_steps(self, requests: Sequence[Request], num_steps: int) -> DecodeTimes:
        times = DecodeTimes()
        for _ in range(num_steps):
            times.contexts.append(sum(r.num_tokens for r in requests) / len(requests))
            begin = time.perf_counter()
            self.engine.step()
            times.seconds.append(time.perf_counter() - begin)
        return times

    def _add(self, work: Work, *, salted: bool = False) -> Request:
        number = next(self._ids)
        request = self.engine.make_request(
            f"bench-{number}",
            work.prompt_token_ids,
            SamplingParams(max_tokens=work.max_tokens, temperature=0, ignore_eos=True),
            adapter=work.adapter,
            cache_salt=f"bench-{number}" if salted else "",
        )
        self.engine.add_request(request)
        return request

    def _outputs(self) -> Iterator[RequestOutput]:
        while self.engine.has_requests:
            yield from self._step()

    def _step(self) -> list[RequestOutput]:
        self._loaded.clear()
        outputs = self.engine.step()
        for output in outputs:
            if output.error is not None:
                self.engine.fail_all(output.error)
                raise output.error
        if self.engine.last_step_was_idle and self.engine.has_requests and not outputs:
            self._loaded.wait()
        return outputs
