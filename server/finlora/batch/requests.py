"""One line of a request file, checked as far as no server is needed for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finlora.errors import RequestError

ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/classify")


class BatchRequest(BaseModel):
    """What OpenAI's batch format has on a line."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: Literal["/v1/completions", "/v1/chat/completions", "/v1/classify"]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A request, or why there is none on this line."""

    where: str
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
        return Line(where, problem=RequestError(f"{where}: {what}", param=name or None))
    if request.body.get("stream"):
        return Line(
            where, request, RequestError(f"{where}: stream: a file has no streams", param="stream")
        )
    return Line(where, request)
