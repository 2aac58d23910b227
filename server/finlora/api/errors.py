"""The one table from an error's class to what the client sees, in OpenAI's error object."""

from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from finlora.api.request_ids import HEADER, request_id_of
from finlora.api.request_record import CLIENT_GONE, note_error
from finlora.api.state import server_state
from finlora.errors import (
    AdapterConflictError,
    AdapterIncompatibleError,
    AdapterLoadError,
    AdapterNotFoundError,
    EngineOverloadedError,
    EngineStoppedError,
    FinLoRAError,
    InvalidSamplingParamsError,
    PromptTooLongError,
    RequestError,
)


class AuthenticationError(FinLoRAError):
    """The request carries no valid key."""


class AdministrationDisabledError(FinLoRAError):
    """The server runs without an admin key."""


class BodyTooLargeError(FinLoRAError):
    """The request's body is larger than this server reads."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one class of errors is told to a client."""

    status: int
    type: str
    code: str
    param: str | None = None


INVALID = "invalid_request_error"
SERVER = "server_error"
INTERNAL_ERROR = ErrorKind(500, SERVER, "internal_error")
# Told before there is a request that could raise it: see heads.py.
HEAD_TOO_LARGE = ErrorKind(431, INVALID, "request_too_large")

ERRORS: dict[type[Exception], ErrorKind] = {
    RequestError: ErrorKind(400, INVALID, "invalid_value"),
    InvalidSamplingParamsError: ErrorKind(400, INVALID, "invalid_value"),
    PromptTooLongError: ErrorKind(400, INVALID, "context_length_exceeded", "prompt"),
    AuthenticationError: ErrorKind(401, INVALID, "invalid_api_key"),
    AdministrationDisabledError: ErrorKind(403, INVALID, "administration_disabled"),
    AdapterNotFoundError: ErrorKind(404, INVALID, "model_not_found", "model"),
    AdapterIncompatibleError: ErrorKind(404, INVALID, "model_not_found", "model"),
    AdapterConflictError: ErrorKind(409, INVALID, "adapter_conflict", "model"),
    BodyTooLargeError: ErrorKind(413, INVALID, "request_too_large"),
    AdapterLoadError: ErrorKind(500, SERVER, "adapter_load_failed", "model"),
    EngineOverloadedError: ErrorKind(503, SERVER, "overloaded"),
    EngineStoppedError: ErrorKind(503, SERVER, "engine_not_ready"),
}
HTTP_ERRORS = {
    404: ErrorKind(404, INVALID, "not_found"),
    405: ErrorKind(405, INVALID, "method_not_allowed"),
}
CODES = {kind.code for kind in (INTERNAL_ERROR, *ERRORS.values())}


def kind_of(error: Exception) -> ErrorKind:
    """The row of an error's nearest class; what the table does not know is internal."""
    rows = (ERRORS[cls] for cls in type(error).__mro__ if cls in ERRORS)
    return next(rows, INTERNAL_ERROR)


def error_body(error: Exception) -> dict[str, Any]:
    """What a client sees of an error; an internal one shows nothing of its inside."""
    kind = kind_of(error)
    message = "internal error" if kind is INTERNAL_ERROR else str(error)
    param = getattr(error, "param", None) or kind.param
    return body_of(kind, message, param)


def body_of(kind: ErrorKind, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}


def _response(kind: ErrorKind, body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(orjson.dumps(body), kind.status, headers, "application/json")


def _headers(error: Exception) -> dict[str, str]:
    match error:
        case EngineOverloadedError():
            return {"Retry-After": str(error.retry_after_seconds)}
        case EngineStoppedError():
            return {"Retry-After": "1"}
        case AuthenticationError():
            return {"WWW-Authenticate": "Bearer"}
        case BodyTooLargeError():
            # The rest of the body was not read, so the connection cannot be used again.
            return {"Connection": "close"}
        case FinLoRAError():
            return {}
    # The exception goes on to the server, which logs it and drops the connection.
    return {"Connection": "close"}


async def _on_error(request: Request, error: Exception) -> Response:
    kind = kind_of(error)
    server_state(request).metrics.http.rejected(kind.code)
    note_error(kind.code)
    # The middleware that adds the id elsewhere does not see the answer to what was unexpected.
    headers = {HEADER: request_id_of(request), **_headers(error)}
    return _response(kind, error_body(error), headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    other = ErrorKind(error.status_code, INVALID, "invalid_request")
    kind = HTTP_ERRORS.get(error.status_code, other)
    note_error(kind.code)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _response(kind, body_of(kind, message), dict(error.headers or {}))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return await _on_error(request, RequestError(f"{param}: {first['msg']}", param=param))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def install(app: FastAPI) -> None:
    """Answer every error of the app from the table; what falls through is logged and a 500."""
    app.add_exception_handler(FinLoRAError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_error)
