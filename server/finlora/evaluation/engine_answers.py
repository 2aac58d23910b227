"""Asks the serving engine in this process."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from prometheus_client import CollectorRegistry

from finlora.adapters.adapter import Adapter
from finlora.adapters.compatibility import check_compatible
from finlora.adapters.label_task import LabelTask, softmax
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Settings
from finlora.datasets.rows import Message
from finlora.engine.factory import build_engine
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.request import RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree
from finlora.errors import ConfigError, FinLoRAError
from finlora.evaluation.answers import GENERATED_TOKENS, Question, Reply
from finlora.metrics import Metrics
from finlora.offline.runner import Job, Runner
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
    # By the name that is asked for: two may be versions of one adapter.
    adapters = {n: registry.resolve(n) for n in models if not _is_base(n, settings.model)}
    ranks = [max([a.config.r, *a.config.rank_pattern.values()]) for a in adapters.values()]
    room = {
        "max_loras": max(len(adapters), 1),
        "max_lora_rank": max([*ranks, 1]),
    }
    settings = settings.model_copy(update=room)
    engine = build_engine(settings, registry, Metrics(CollectorRegistry()), report=lambda _: None)
    try:
        for adapter in adapters.values():
            check_compatible(adapter, engine.spec, settings.quantization, strict=settings.strict)
        yield EngineAnswers(engine, adapters, settings)
        engine.check_idle()
    finally:
        engine.close()


class EngineAnswers:
    """Keeps as many questions in the engine as it runs in one batch."""

    def __init__(self, engine: LLMEngine, adapters: dict[str, Adapter], settings: Settings) -> None:
        self.concurrency = settings.max_num_seqs
        self.stats = engine.stats
        self._engine = engine
        self._runner = Runner(engine, max_queued=self.concurrency)
        self._adapters = adapters
        self._settings = settings
        self._encoder = TextEncoder(engine.tokenizer)
        self._scoring: dict[tuple[str, ...], SamplingParams] = {}

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """(index, reply) in order. Raises the FinLoRAError of the first that fails."""
        started: deque[float] = deque()

        def jobs() -> Iterator[Job]:
            for question in questions:
                started.append(time.perf_counter())
                yield self._job(question)

        for index, output in enumerate(self._runner.stream(jobs())):
            if isinstance(output, FinLoRAError):
                raise output
            seconds = time.perf_counter() - started.popleft()
            yield index, self._reply(questions[index], output, seconds)

    def describe(self) -> dict[str, str]:
        """What answers."""
        return {
            "engine": "in process",
            "base": self._engine.spec.name,
            "quantization": str(self._settings.quantization),
        }

    def _job(self, question: Question) -> Job:
        prompt = self._prompt(question)
        return Job(prompt, self._params(question.labels), self._adapter(question.model))

    def _prompt(self, question: Question) -> list[int]:
        """As the server reads it: classified, completed, or a chat by the base's own template."""
        if question.messages:
            return self._chat(question.messages)
        own = _template(self._adapter(question.model))
        text = question.text_in(own)
        if own is None or text is None:
            return encode_prompt(self._engine.tokenizer, question.prompt)
        return self._encoder.encode_template(own, text)

    def _chat(self, messages: Sequence[Message]) -> list[int]:
        template = self._engine.chat_template
        if template is None:
            raise ConfigError("the rows are chats, but the base has no chat template")
        return template.encode([asdict(message) for message in messages])

    def _params(self, labels: tuple[str, ...]) -> SamplingParams:
        if not labels:
            return GREEDY
        if labels not in self._scoring:
            tree = ChoiceTree([self._encoder.encode_target(label) for label in labels])
            self._scoring[labels] = SamplingParams.scoring(tree)
        return self._scoring[labels]

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
        adapter, logprobs = self._adapter(question.model), output.choice_logprobs or ()
        if question.text_in(_template(adapter)) is None:
            return softmax(logprobs)
        return LabelTask.of(adapter, labels=question.labels).probabilities(logprobs)


def _template(adapter: Adapter | None) -> PromptTemplate | None:
    own = None if adapter is None else adapter.manifest.prompt_template
    return None if own is None else PromptTemplate(own)


def _is_base(name: str, base: str) -> bool:
    return name in (BASE, base)
