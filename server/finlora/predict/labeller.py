"""Who labels texts: an engine in this process, or a server."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from finlora.config import Settings
from finlora.errors import FinLoRAError
from finlora.offline.results import Classification, Text

if TYPE_CHECKING:
    from finlora.offline.engine import Engine


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every text; None: the adapter's own."""

    adapter: str | None
    labels: tuple[str, ...] | None = None
    template: str | None = None


class Labeller(Protocol):
    """Labels texts in order."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from."""

    @property
    def identity(self) -> dict[str, Any]:
        """What answers depend on, for a run that goes on later."""

    def each(self, texts: Iterable[Text]) -> Generator[Classification | FinLoRAError]:
        """The label of each text; an error in the place of one that has none."""


class LocalLabeller:
    """An engine in this process."""

    def __init__(self, engine: "Engine", question: Question) -> None:
        """Raises FinLoRAError: the adapter, the labels or the template cannot be."""
        classifier = engine.classifier(
            adapter=question.adapter, labels=question.labels, template=question.template
        )
        self.each = classifier.each
        self.labels = classifier.task.labels
        self.identity = {
            "base": engine.model,
            "adapter": classifier.reference,
            "labels": list(self.labels),
            "template": classifier.task.template.text,
        }


@contextmanager
def local_labeller(settings: Settings, question: Question) -> Iterator[Labeller]:
    """An engine for as long as it is needed. Raises FinLoRAError."""
    from finlora.offline.engine import Engine  # imports torch

    with Engine.of(settings) as engine:
        yield LocalLabeller(engine, question)
