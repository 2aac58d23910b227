"""Which column is read, and which ones are added."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finlora.errors import ConfigError, FinLoRAError
from finlora.offline.results import Classification
from finlora.predict.rows import Row

USUAL_NAMES = ("headline", "text", "sentence", "title", "input")
PROBABILITY_DIGITS = 7  # float32 carries no more


@dataclass(frozen=True, slots=True)
class AddedColumns:
    """What a labelled row has more than the row it came from."""

    labels: tuple[str, ...]
    prefix: str = ""

    @property
    def kinds(self) -> dict[str, type]:
        """Name -> type, in order."""
        probabilities = {self._of(label): float for label in self.labels}
        return {
            f"{self.prefix}label": str,
            f"{self.prefix}probability": float,
            **probabilities,
            f"{self.prefix}error": str,
        }

    def check(self, columns: Sequence[str]) -> None:
        """Raises ConfigError when the input has one of these."""
        taken = [name for name in self.kinds if name in columns]
        if taken:
            raise ConfigError(
                f"the input has columns named {', '.join(taken)} already; "
                "choose others with --prefix, such as --prefix predicted_"
            )

    def checked(self, row: Row, columns: frozenset[str] | None) -> Row:
        """The row, with a problem if the output has no place for its fields.

        `columns` are all that the output has room for; None: there is room for any.
        """
        names = row.fields.keys()
        if taken := names & self.kinds.keys():
            problem = f"its field {min(taken)!r} is in the way: choose a --prefix"
        elif columns is not None and (new := names - columns):
            problem = f"field {min(new)!r} is not in the first row; JSON lines could hold it"
        else:
            return row
        return replace(row, problem=row.problem or problem)

    def filled(self, row: Row, answer: Classification | FinLoRAError) -> dict[str, Any]:
        """The row with its label, or with the reason why it has none."""
        added: dict[str, Any] = dict.fromkeys(self.kinds)
        if isinstance(answer, FinLoRAError):
            added[f"{self.prefix}error"] = f"{row.where}: {answer}"
        else:
            added[f"{self.prefix}label"] = answer.label
            added[f"{self.prefix}probability"] = round(answer.probability, PROBABILITY_DIGITS)
            for label, chance in answer.probabilities.items():
                added[self._of(label)] = round(chance, PROBABILITY_DIGITS)
        return row.fields | added

    def _of(self, label: str) -> str:
        return f"{self.prefix}probability_{label}"


def text_column(columns: Sequence[str], given: str | None) -> str:
    """The column to label. Raises ConfigError when it is not there or not clear."""
    if given is not None:
        if given not in columns:
            raise ConfigError(f"there is no column {given!r}, only {', '.join(columns)}")
        return given
    if len(columns) == 1:
        return columns[0]
    usual = [name for name in USUAL_NAMES if name in columns]
    if len(usual) == 1:
        return usual[0]
    raise ConfigError(f"choose the text with --text-column, out of {', '.join(columns)}")
