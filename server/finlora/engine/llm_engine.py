"""The engine: add requests, step until they are done. One thread drives it."""

import logging
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

from finlora.adapters.adapter import Adapter
from finlora.adapters.cache import AdapterCache
from finlora.bases.spec import BaseSpec
from finlora.chat_template import ChatTemplate
from finlora.engine import observed
from finlora.engine.batch import Batch
from finlora.engine.choice_sampler import Answer, begin_choice, next_tokens
from finlora.engine.detokenizer import Detokenizer
from finlora.engine.lora import LoRASlots
from finlora.engine.lora_weights import AdapterWeights
from finlora.engine.memory import KVMemory
from finlora.engine.model_runner import BatchLogits, ModelRunner
from finlora.engine.outputs import emit, finish_reason
from finlora.engine.request import (
    FinishReason,
    Request,
    RequestOutput,
    RequestStatus,
)
from finlora.engine.sampler import Sampled, Sampler, token_logprobs
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.scheduler import Scheduler
from finlora.engine.stats import EngineStats
from finlora.errors import (
    AdapterIncompatibleError,
    EngineError,
    FinLoRAError,
    InvalidSamplingParamsError,
    PromptTooLongError,
    RequestError,
)
from finlora.metrics import Metrics

logger = logging.getLogger(__name__)

STATUS_OF_REASON = {
    FinishReason.STOP: RequestStatus.FINISHED_STOP,
    FinishReason.LENGTH: RequestStatus.FINISHED_LENGTH,
    FinishReason.ABORT: RequestStatus.FINISHED_ABORT,
    FinishReason.ERROR: RequestStatus.FINISHED_ERROR,
    FinishReason.REFUSED: RequestStatus.FINISHED_REFUSED,
}


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is put together from (see factory.py)."""

    runner: ModelRunner
    scheduler: Scheduler
    memory: KVMemory
    adapters: AdapterCache[AdapterWeights]
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    spec: BaseSpec
    metrics: Metrics
    base_bytes: dict[str, int]
    slots: LoRASlots


class LLMEngine:
    """Runs requests in mixed batches; a request's failure stays its own."""

    def __init__(self, parts: EngineParts) -> None:
        self.spec = parts.spec
        self.adapters = parts.adapters
        self.max_model_len = parts.memory.kv_cache.max_model_len
        self.tokenizer = parts.tokenizer
        # Not used here: it comes with the base, as the tokenizer does.
        self.chat_template = parts.chat_template
        self.vocab_size = parts.runner.vocab_size
        self._parts = parts
        self._runner = parts.runner
        self._scheduler = parts.scheduler
        self._sampler = Sampler()
        self._metrics = parts.metrics
        self._requests: dict[str, Request] = {}
        self.last_step_was_idle = True

    def make_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        adapter: Adapter | None = None,
        cache_salt: str = "",
    ) -> Request:
        """A checked request; safe from any thread.

        Raises PromptTooLongError, RequestError, InvalidSamplingParamsError,
        AdapterIncompatibleError.
        """
        if not prompt_token_ids:
            raise RequestError("the prompt has no tokens", param="prompt")
        self._check_biases(params)
        self._check_length(len(prompt_token_ids), params)
        if adapter is not None:
            self.check_takes_adapters()
        own_eos = (adapter.manifest.eos_token_ids or []) if adapter is not None else []
        eos = [*own_eos, *self.spec.eos_token_ids]
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            params=params,
            adapter=adapter,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            detokenizer=Detokenizer(self._parts.tokenizer, prompt_token_ids, params.stop),
            eos_token_ids=frozenset(eos),
            end_token_id=eos[0] if eos else None,
            cache_salt=cache_salt,
            constraint=None if params.grammar is None else params.grammar.start(),
        )
        if params.choice is not None:
            begin_choice(request, params.choice, self.vocab_size)
        return request

    def check_takes_adapters(self) -> None:
        """Raises AdapterIncompatibleError when there are no slots."""
        if self.adapters.max_loras == 0:
            raise AdapterIncompatibleError("this server runs without adapters (max_loras is 0)")

    def _check_length(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        num_output, what = max(
            (params.max_tokens, "output (max_tokens)"), (params.num_branches, "labels to score")
        )
        num_tokens = num_prompt_tokens + num_output
        if num_tokens > self.max_model_len:
            raise PromptTooLongError(
                f"this model's context is {self.max_model_len} tokens; {num_prompt_tokens} of "
                f"prompt and {num_output} of {what} make {num_tokens}",
                param="prompt",
            )

    def _check_biases(self, params: SamplingParams) -> None:
        """The sampler takes ids for rows of logits: a wrong one would fail the whole step."""
        for token_id in params.logit_bias:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidSamplingParamsError(
                    f"logit_bias: token id {token_id} is not from 0 to {self.vocab_size - 1}",
                    param="logit_bias",
                )

    def add_request(self, request: Request) -> None:
        """Queue a request made by `make_request`."""
        self._requests[request.request_id] = request
        self._scheduler.add(request)

    def abort_request(self, request_id: str, *, is_withdrawn: bool = False) -> None:
        """Forget a request, wherever it stands; unknown or finished ones are ignored.

        `is_withdrawn`: nobody left, but another that its client asked for together with it failed.
        """
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.ABORT, is_withdrawn=is_withdrawn)

    @property
    def requests(self) -> Collection[Request]:
        """All that run or wait."""
        return self._requests.values()

    @property
    def has_requests(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._requests)

    def step(self) -> list[RequestOutput]:
        """Run one batch; what became of its requests."""
        outputs = [self._fail(*failed) for failed in self._scheduler.unloadable()]
        started = time.perf_counter()
        batch = self._schedule()
        self.last_step_was_idle = not batch.sequences
        if not batch.sequences:
            return outputs
        try:
            logits = self._runner.run(batch)
            self._scheduler.advance(batch)
            self._add_prompt_logprobs(logits)
            sampling = [s for s in batch.sequences if s.samples]
            answers = next_tokens(self._sampler, logits.next_token, sampling)
        except Exception:
            logger.exception("a step failed; its %d requests end", len(batch.requests))
            error = EngineError("the engine failed while it ran this request")
            return outputs + [self._fail(request, error) for request in batch.requests]
        outputs += self._take_answers(answers)
        self._observe_step(batch, time.perf_counter() - started)
        return outputs

    def fail_all(self, error: FinLoRAError) -> list[RequestOutput]:
        """End every request, and every wait for a load, with the error."""
        self.adapters.abandon_loads(error)
        return [self._fail(request, error) for request in list(self._requests.values())]

    def stats(self) -> EngineStats:
        """The state at this moment; safe from any thread (a torn read is off by one request)."""
        parts = self._parts
        running = list(self._scheduler.running)
        waiting = list(self._scheduler.waiting)
        return EngineStats(
            num_running=len(running),
            num_waiting=len(waiting),
            kv_cache_usage=parts.memory.usage,
            base_bytes=parts.base_bytes,
            adapter_bytes={"slot": parts.slots.num_bytes, "ram": parts.adapters.ram_bytes},
            kv_cache_bytes=parts.memory.kv_cache.num_bytes,
            num_kv_pages=parts.memory.kv_cache.num_pages,
            prefix_cache_bytes=parts.memory.prefix_cache_bytes,
            cuda_bytes=observed.cuda_bytes(parts.runner.device),
            resident_adapters=parts.adapters.resident_names,
            max_loras=parts.adapters.max_loras,
            running_adapters=_names(r.request for r in running),
            waiting_adapters=_names(waiting),
        )

    def check_idle(self) -> None:
        """Raise RuntimeError when a request, page, pin or slot is left behind."""
        if self._requests:
            raise RuntimeError(f"engine: {len(self._requests)} requests are left")
        self._scheduler.check_idle()
        self._parts.memory.check_integrity(idle=True)
        self._parts.adapters.check_idle()

    def close(self) -> None:
        """Stop the loader thread."""
        self._parts.adapters.close()

    def _schedule(self) -> Batch:
        before = self._scheduler.num_preemptions
        batch = self._scheduler.schedule()
        for _ in range(self._scheduler.num_preemptions - before):
            self._metrics.preempted()
        return batch

    def _add_prompt_logprobs(self, logits: BatchLogits) -> None:
        for sequence, rows in logits.prompt:
            request = sequence.request
            num_known = len(request.prompt_logprobs)
            stop = min(sequence.start + sequence.num_tokens, len(request.prompt_token_ids) - 1)
            # After a preemption the chunk may begin with positions that are known already.
            start = num_known - 1
            if start >= stop:
                continue
            num_top = request.params.prompt_logprobs or 0
            request.prompt_logprobs += token_logprobs(
                rows[start - sequence.start : stop - sequence.start],
                request.prompt_token_ids[start + 1 : stop + 1],
                num_top,
            )

    def _take_answers(self, answers: list[Answer]) -> list[RequestOutput]:
        now = time.monotonic()
        outputs = []
        for request, tokens in answers:
            try:
                output = self._take_answer(request, tokens, now)
            except Exception:
                logger.exception("request %s failed", request.request_id)
                output = self._fail(request, EngineError("the engine failed on this request"))
            if output is not None:
                outputs.append(output)
        return outputs

    def _take_answer(
        self, request: Request, tokens: list[Sampled], now: float
    ) -> RequestOutput | None:
        for i, token in enumerate(tokens, 1):
            if token.token_id is None:
                return self._fail(request, token.error or self._not_finite(request))
            if request.params.max_tokens:
                request.append(token.token_id, token.logprob)
            reason, stop_reason = finish_reason(
                request, token.token_id, more_follow=i < len(tokens)
            )
            if reason is not None:
                self._observe_tokens(request, now)
                return self._finish(request, reason, stop_reason)
        self._observe_tokens(request, now)
        return emit(request) if request.params.stream else None

    def _not_finite(self, request: Request) -> EngineError:
        self._metrics.non_finite(observed.name_of(request))
        return EngineError("the model gave logits that are not finite")

    def _observe_tokens(self, request: Request, now: float) -> None:
        """A step gave the request tokens; however many, to a client they are one event."""
        if not request.params.max_tokens:
            return
        if request.last_token_time is None:
            request.first_token_time = now
        else:
            self._metrics.token_emitted(now - request.last_token_time)
        request.last_token_time = now

    def _fail(self, request: Request, error: FinLoRAError) -> RequestOutput:
        # As that of a grammar which takes too much to go on: no reason to wake an operator.
        is_clients = isinstance(error, RequestError)
        reason = FinishReason.REFUSED if is_clients else FinishReason.ERROR
        return self._finish(request, reason, error=error)

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        error: FinLoRAError | None = None,
        is_withdrawn: bool = False,
    ) -> RequestOutput:
        output = emit(request, reason, stop_reason, error)
        self._scheduler.finish(request, STATUS_OF_REASON[reason])
        del self._requests[request.request_id]
        self._metrics.request_finished(
            observed.finished(request, reason, error, is_withdrawn=is_withdrawn)
        )
        return output

    def _observe_step(self, batch: Batch, seconds: float) -> None:
        self._metrics.step(
            num_tokens=batch.num_tokens,
            num_seqs=len(batch.requests),
            num_adapters=len({request.digest for request in batch.requests} - {None}),
            seconds=seconds,
            rows=observed.rows_by_adapter(batch),
        )


def _names(requests: Iterable[Request]) -> tuple[str, ...]:
    return tuple(sorted({r.adapter.name for r in requests if r.adapter is not None}))
