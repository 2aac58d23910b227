"""From the bytes of a body to a checked object, or to an error that names the field."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from finlora.errors import RequestError

MAX_FIELDS = 64


class RequestBody(BaseModel):
    """A JSON object. A field that is null is a field that was not sent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    # Fields that clients know from elsewhere, and why this server has none of them.
    refused: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """The checked request. Raises RequestError that names the offending field in `param`."""
        request = cls._validated(cls._parse(body))
        request.check()
        return request

    def check(self) -> None:
        """What no field can tell alone. Raises RequestError."""

    @classmethod
    def _validated(cls, fields: dict[str, Any]) -> Self:
        sent = {name: value for name, value in fields.items() if value is not None}
        for name, reason in cls.refused.items():
            require(name not in sent, name, f"is not supported: {reason}")
        try:
            return cls.model_validate(sent)
        except ValidationError as error:
            raise first_error(error) from error

    @classmethod
    def _parse(cls, body: bytes) -> dict[str, Any]:
        # orjson refuses NaN, Infinity, lone surrogates and deep nesting.
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            cls._name_the_field(body)
            raise RequestError(f"the body is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise RequestError("the body must be a JSON object")
        if len(fields) > MAX_FIELDS:
            raise RequestError(f"the body must have at most {MAX_FIELDS} fields")
        return fields

    @classmethod
    def _name_the_field(cls, body: bytes) -> None:
        """Raises RequestError for the field with what JSON has no way to write: NaN, half a pair.

        Python's own parser lets these through, and then the field's bounds do not.
        """
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return
        if isinstance(fields, dict):
            cls._validated(fields)


def require(holds: bool, param: str, what: str) -> None:
    """Raises RequestError unless it holds."""
    if not holds:
        raise RequestError(f"{param} {what}", param=param)


def first_error(error: ValidationError) -> RequestError:
    """The first thing that is wrong, by the name of its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    what = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return RequestError(f"the body cannot be used: {what}")
    param = str(first["loc"][0])[:100]
    where = ".".join(map(str, first["loc"]))[:200]
    if first["type"] == "extra_forbidden":
        return RequestError(f"unknown field: {where}", param=param)
    return RequestError(f"{param}: {what}", param=param)
