"""One line of a request file, checked as far as no server is needed for."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from finlora.errors import RequestError

CustomId = Annotated[str, Field(min_length=1, max_length=512)]
ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/classify")


class BatchRequest(BaseModel):
    """What OpenAI's batch format has on a line."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/completions", "/v1/chat/completions", "/v1/classify"]
    body: dict[str, Any]

    @field_validator("body")
    @classmethod
    def _can_be_sent(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Reading allows what JSON has not: NaN, and numbers too large for a float."""
        try:
            json.dumps(body, allow_nan=False)
        except ValueError as error:
            raise PydanticCustomError("not_json", "holds a number that JSON has not") from error
        return body


class _Stated(BaseModel):
    """What of a line that is no request can still be told."""

    custom_id: CustomId


@dataclass(frozen=True, slots=True)
class Line:
    """A request, or why there is none on this line."""

    where: str
    custom_id: str | None = None
    request: BatchRequest | None = None
    problem: RequestError | None = None


def read_lines(stream: BinaryIO, path: Path) -> Iterator[Line]:
    """Every line but empty ones."""
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _parse(line, f"{path}:{number}")


def _parse(line: bytes, where: str) -> Line:
    try:
        request = BatchRequest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        what = f"{name}: {first['msg']}" if name else first["msg"]
        problem = RequestError(f"{where}: {what}", param=name or None)
        return Line(where, _stated_id(line), problem=problem)
    custom_id = request.custom_id
    if request.body.get("stream"):
        problem = RequestError(f"{where}: stream: a file has no streams", param="stream")
        return Line(where, custom_id, problem=problem)
    return Line(where, custom_id, request)


def _stated_id(line: bytes) -> str | None:
    """The custom_id of a line that is no request, so that whoever wrote it finds it again."""
    try:
        return _Stated.model_validate_json(line, strict=True).custom_id
    except ValidationError:
        return None
