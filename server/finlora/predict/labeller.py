"""Who labels texts: an engine in this process, or a server."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from finlora.config import Settings
from finlora.errors import FinLoRAError
from finlora.offline.answers import Text
from finlora.offline.results import Classification


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every text; None: the adapter's own."""

    adapter: str | None
    labels: tuple[str, ...] | None = None
    template: str | None = None


class Labeller(Protocol):
    """Labels texts in order."""

    labels: tuple[str, ...]
    identity: dict[str, Any]  # what answers depend on, for a run that goes on later

    def each(self, texts: Iterable[Text]) -> Generator[Classification | FinLoRAError]:
        """The label of each text; an error in the place of one that has none."""


class LocalLabeller:
    """The engine in this process."""

    def __init__(self, settings: Settings, question: Question) -> None:
        """Load it. Raises FinLoRAError."""
        from finlora.offline.engine import Engine  # imports torch

        self._engine = Engine.of(settings)
        classifier = self._engine.classifier(
            adapter=question.adapter, labels=question.labels, template=question.template
        )
        self.each = classifier.each
        self.labels = classifier.task.labels
        self.identity = {
            "base": self._engine.model,
            "adapter": classifier.reference,
            "labels": list(self.labels),
            "template": classifier.task.template.text,
        }

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()


@contextmanager
def local_labeller(settings: Settings, question: Question) -> Iterator[Labeller]:
    """An engine for as long as it is needed."""
    labeller = LocalLabeller(settings, question)
    try:
        yield labeller
    finally:
        labeller.close()
