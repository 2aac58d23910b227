"""What a finlora server answers, as far as it is read here, and that it is one."""

from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from finlora.errors import RemoteError
from finlora.offline.results import Classification


class ServedModel(BaseModel):
    """The base or an adapter; the base has no parent and no digest."""

    id: str
    parent: str | None = None
    digest: str | None = None
    labels: list[str] | None = None


class ServedModels(BaseModel):
    """GET /v1/models."""

    data: list[ServedModel]


class _Classified(BaseModel):
    index: int
    label: str
    probabilities: dict[str, float]


class _Classifications(BaseModel):
    data: list[_Classified]


Body = TypeVar("Body", bound=BaseModel)


def parsed(answer: httpx.Response, kind: type[Body]) -> Body:
    """The body of a good answer. Raises RemoteError."""
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise not_ours(answer) from error


def classifications(
    answer: httpx.Response, num_texts: int, labels: tuple[str, ...]
) -> list[Classification]:
    """One for each text that was sent, in order. Raises RemoteError."""
    entries = sorted(parsed(answer, _Classifications).data, key=lambda entry: entry.index)
    wanted = {*labels}
    if [entry.index for entry in entries] != list(range(num_texts)) or not all(
        entry.label in wanted and entry.probabilities.keys() == wanted for entry in entries
    ):
        raise not_ours(answer)
    return [Classification(entry.label, entry.probabilities) for entry in entries]


def not_ours(answer: httpx.Response) -> RemoteError:
    """For an answer of another form than ours."""
    return RemoteError(f"{answer.url}: no finlora server answers there")
