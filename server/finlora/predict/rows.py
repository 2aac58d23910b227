"""One row on its way from the input to the output."""

from dataclasses import dataclass, field
from typing import Any

from finlora.errors import RequestError


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in one row of the input; with a `problem` only what could be read of it."""

    where: str  # file and line
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def text(self, column: str) -> str | RequestError:
        """The text to label, or why there is none."""
        if self.problem is not None:
            return RequestError(self.problem, param=column)
        value = self.fields.get(column)
        if value is None or value == "" or (isinstance(value, str) and not value.strip()):
            return RequestError(f"no text in column {column!r}", param=column)
        if not isinstance(value, str):
            return RequestError(f"column {column!r} holds no text but {value!r:.80}", param=column)
        try:
            value.encode()
        except UnicodeEncodeError:
            return RequestError(f"column {column!r} is not valid Unicode", param=column)
        return value
