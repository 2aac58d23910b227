"""`finlora.Engine`: one base and its adapters in this process, from texts to answers."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from prometheus_client import CollectorRegistry

from finlora.adapters.label_task import LabelTask
from finlora.bases.imports import import_bitsandbytes
from finlora.bases.quiet import quiet_libraries
from finlora.config import DEFAULT_BASE, Settings, load_settings
from finlora.errors import ConfigError, FinLoRAError, RequestError
from finlora.metrics import Metrics
from finlora.offline.adapters import Adapters
from finlora.offline.answers import Classifier, completions
from finlora.offline.options import SamplingOptions, sampling_params
from finlora.offline.results import Classification, Completion
from finlora.offline.runner import Runner
from finlora.prompts import PromptTemplate, TextEncoder

Answer = TypeVar("Answer")


class Engine:
    """A base with its adapters, loaded once. Safe to use from several threads.

    Settings are those of `finlora serve`, by name (`device="cpu"`, `max_loras=32`); what is not
    given comes from the `FINLORA_*` variables and defaults. A list of texts gives a list of
    answers; an iterator gives an iterator that reads ahead a few hundred texts at most, so its
    length does not matter. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        model: str = DEFAULT_BASE,
        *,
        registry: str | Path | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
        **settings: Any,
    ) -> None:
        """Load a base; `on_phase` is told what is being done. Raises ConfigError, BaseModelError.

        `model` is an embedded base, a local folder or a hub id; `registry` the folder of the
        adapters, by default the one that `finlora serve` would use.
        """
        self._load(_settings(model, registry, settings), on_phase)

    @classmethod
    def of(
        cls, settings: Settings, *, on_phase: Callable[[str], None] = lambda phase: None
    ) -> Self:
        """An engine of settings that are complete."""
        engine = cls.__new__(cls)
        engine._load(settings, on_phase)
        return engine

    def _load(self, settings: Settings, on_phase: Callable[[str], None]) -> None:
        self.settings = settings
        quiet_libraries()
        # Not above: the libraries must be quiet first, and a wrong setting need not wait for torch.
        import_bitsandbytes()
        from finlora.engine.factory import build_engine

        self._adapters = Adapters(self.settings)
        metrics = Metrics(CollectorRegistry())
        engine = build_engine(self.settings, self._adapters.registry, metrics, report=on_phase)
        self._spec = engine.spec
        self._tokenizer = engine.tokenizer
        self._encoder = TextEncoder(engine.tokenizer)
        self._runner = Runner(engine)

    @property
    def model(self) -> str:
        """The name of the base."""
        return self._spec.name

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that this base can use."""
        return self._adapters.names(self._spec)

    def add_adapter(
        self,
        folder: str | Path,
        *,
        name: str,
        labels: Sequence[str] | None = None,
        template: str | None = None,
    ) -> list[str]:
        """Check a PEFT folder and use it under this name until the engine is closed.

        `labels` and `template` are what it was trained to answer. Nothing is written to the
        registry (`finlora adapters add` does that). Returns warnings. Raises AdapterError.
        """
        return self._adapters.add(Path(folder), name, self._spec, labels=labels, template=template)

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        *,
        adapter: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        prompts: Iterator[str],
        *,
        adapter: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Completion]: ...
    def generate(
        self,
        prompts: Iterable[str],
        *,
        adapter: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion] | Iterator[Completion]:
        """What follows each prompt, in order. Prompts are read verbatim.

        Raises the FinLoRAError of the first prompt that cannot be answered.
        """
        found = self._adapters.resolve(adapter, self._spec)
        params = sampling_params(options)
        return _answers(prompts, completions(self._runner, self._tokenizer, prompts, params, found))

    @overload
    def classify(
        self,
        texts: Sequence[str],
        *,
        adapter: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
    ) -> list[Classification]: ...
    @overload
    def classify(
        self,
        texts: Iterator[str],
        *,
        adapter: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
    ) -> Iterator[Classification]: ...
    def classify(
        self,
        texts: Iterable[str],
        *,
        adapter: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
    ) -> list[Classification] | Iterator[Classification]:
        """The label of each text, with the exact probability of every label, in order.

        Labels and template (text around one `{input}`) are the adapter's own unless they are given.
        Raises the FinLoRAError of the first text that cannot be answered.
        """
        classifier = self.classifier(adapter=adapter, labels=labels, template=template)
        return _answers(texts, classifier.each(texts))

    def classifier(
        self,
        *,
        adapter: str | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
    ) -> Classifier:
        """What `classify` works with; its `each` puts errors in the place of answers."""
        found = self._adapters.resolve(adapter, self._spec)
        given = None if template is None else PromptTemplate(template)
        task = LabelTask.of(found, labels=labels, template=given)
        return Classifier(self._runner, self._encoder, task, found)

    def close(self) -> None:
        """End what still runs and stop the threads; a closed engine answers no more."""
        self._runner.close()
        self._adapters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _settings(model: str, registry: str | Path | None, given: dict[str, Any]) -> Settings:
    unknown = given.keys() - Settings.model_fields
    if unknown:
        raise ConfigError(f"{min(unknown)} is not a setting; docs/cli.md lists them")
    return load_settings(model=model, registry=registry, **given)


def _answers(
    texts: Iterable[str], answers: Generator[Answer | FinLoRAError]
) -> list[Answer] | Iterator[Answer]:
    if isinstance(texts, str):
        raise RequestError("one text was given; give a list, even of one", param="texts")
    checked = _checked(answers)
    return list(checked) if isinstance(texts, Sequence) else checked


def _checked(answers: Generator[Answer | FinLoRAError]) -> Iterator[Answer]:
    with closing(answers):
        for answer in answers:
            if isinstance(answer, FinLoRAError):
                raise answer
            yield answer
