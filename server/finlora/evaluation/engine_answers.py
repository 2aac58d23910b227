"""Asks the serving engine in this process."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from prometheus_client import CollectorRegistry

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_compatible
from finlora.adapters.label_task import LabelTask
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.engine.factory import build_engine
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import Request, RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree
from finlora.evaluation.answers import GENERATED_TOKENS, Question, Reply
from finlora.metrics import Metrics
from finlora.prompts import PromptTemplate, TextEncoder, encode_prompt

BASE = "base"  # what the bare base is called, besides its own name
GREEDY = SamplingParams(max_tokens=GENERATED_TOKENS, temperature=0)


@contextmanager
def engine_answers(
    settings: Settings, registry: AdapterRegistry, models: Sequence[str]
) -> Iterator["EngineAnswers"]:
    """An engine with room for these models' adapters. Raises FinLoRAError.

    At the end nothing may be left running in it (RuntimeError).
    """
    adapters = [registry.resolve(name) for name in models if not _is_base(name, settings.model)]
    ranks = [adapter.config.r for adapter in adapters]
    room = {
        "max_loras": max(len(adapters), 1),
        "max_lora_rank": max([*ranks, 1]),
    }
    settings = settings.model_copy(update=room)
    engine = build_engine(settings, registry, Metrics(CollectorRegistry()), report=lambda _: None)
    try:
        for adapter in adapters:
            check_compatible(adapter, engine.spec, settings.quantization, strict=settings.strict)
        yield EngineAnswers(engine, {a.name: a for a in adapters}, settings)
        engine.check_idle()
    finally:
        engine.close()


class EngineAnswers:
    """Keeps as many questions in the engine as it runs in one batch."""

    def __init__(self, engine: LLMEngine, adapters: dict[str, Adapter], settings: Settings) -> None:
        self.concurrency = settings.max_num_seqs
        self.stats = engine.stats
        self._engine = engine
        self._adapters = adapters
        self._settings = settings
        self._encoder = TextEncoder(engine.tokenizer)
        self._trees: dict[tuple[str, ...], SamplingParams] = {}
        self._loaded = threading.Event()
        engine.adapters.on_loaded = self._loaded.set

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """(index, reply) as they come. Raises the FinLoRAError of the first that fails."""
        waiting = iter(enumerate(questions))
        started: dict[str, float] = {}
        try:
            while self._fill(waiting, started):
                for output in self._step():
                    index = int(output.request_id)
                    seconds = time.perf_counter() - started.pop(output.request_id)
                    yield index, self._reply(questions[index], output, seconds)
        finally:
            for request_id in started:
                self._engine.abort_request(request_id)

    def describe(self) -> dict[str, str]:
        """What answers."""
        return {
            "engine": "in process",
            "base": self._engine.spec.name,
            "quantization": str(self._settings.quantization),
        }

    def _fill(self, waiting: Iterator[tuple[int, Question]], started: dict[str, float]) -> int:
        """Keep the batch full; how many questions are being answered."""
        for index, question in islice(waiting, self.concurrency - len(started)):
            request = self._request(str(index), question)
            started[request.request_id] = time.perf_counter()
            self._engine.add_request(request)
        return len(started)

    def _step(self) -> list[RequestOutput]:
        self._loaded.clear()
        outputs = self._engine.step()
        for output in outputs:
            if output.error is not None:
                raise output.error
        if self._engine.last_step_was_idle and not outputs:
            self._loaded.wait()
        return outputs

    def _request(self, request_id: str, question: Question) -> Request:
        return self._engine.make_request(
            request_id,
            encode_prompt(self._engine.tokenizer, question.prompt),
            self._params(question.labels),
            adapter=self._adapter(question.model),
        )

    def _params(self, labels: tuple[str, ...]) -> SamplingParams:
        if not labels:
            return GREEDY
        if labels not in self._trees:
            tree = ChoiceTree([self._encoder.encode_target(label) for label in labels])
            self._trees[labels] = SamplingParams(
                max_tokens=tree.max_tokens, temperature=0, logprobs=0, choice=tree
            )
        return self._trees[labels]

    def _adapter(self, model: str) -> Adapter | None:
        return None if _is_base(model, self._settings.model) else self._adapters[model]

    def _reply(self, question: Question, output: RequestOutput, seconds: float) -> Reply:
        scored = bool(question.labels)
        return Reply(
            text="" if scored else output.text,
            probabilities=tuple(self._probabilities(question, output)) if scored else (),
            num_prompt_tokens=output.num_prompt_tokens,
            num_output_tokens=0 if scored else output.num_output_tokens,
            seconds=seconds,
        )

    def _probabilities(self, question: Question, output: RequestOutput) -> list[float]:
        """Calibrated where the prompt is of the adapter's own form, as its clients get them."""
        adapter = self._adapter(question.model)
        return _task(adapter, question).probabilities(output.choice_logprobs or ())


def _task(adapter: Adapter | None, question: Question) -> LabelTask:
    own = None if adapter is None else adapter.manifest.prompt_template
    template = None if own is None else PromptTemplate(own)
    if template is None or template.extract(question.prompt) is None:
        return LabelTask(question.labels, template or PromptTemplate("{input}"))
    return LabelTask.of(adapter, labels=question.labels)


def _is_base(name: str, base: str) -> bool:
    return name in (BASE, base)
