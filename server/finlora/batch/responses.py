"""The response file: lines as OpenAI writes them, durable, and what of them is there already."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

from finlora.errors import ConfigError, RequestError


def answered(custom_id: str, status: int, request_id: str | None, body: Any) -> dict[str, Any]:
    """The line for whatever a server answered, good or not."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": _new_id(), "custom_id": custom_id, "response": response, "error": None}


def refused(custom_id: str | None, error: RequestError) -> dict[str, Any]:
    """The line for a request that was never sent."""
    problem = {"code": "invalid_request", "message": str(error), "param": error.param}
    return {"id": _new_id(), "custom_id": custom_id, "response": None, "error": problem}


def problem(line: dict[str, Any]) -> str | None:
    """What went wrong with a request, for people; None: nothing."""
    if line["error"] is not None:
        return str(line["error"]["message"])
    response = line["response"]
    if response["status_code"] < httpx.codes.BAD_REQUEST:
        return None
    try:
        reason = response["body"]["error"]["message"]
    except (KeyError, TypeError):
        reason = "no reason given"
    return f"{line['custom_id']}: {response['status_code']}: {reason}"


class ResponseFile:
    """Appends lines; knows who has one. Closed, it is durable."""

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        """Go on behind what is there. Raises ConfigError when that is not a response file.

        `anew`: what is there goes when there is something in its place, not before.
        """
        self.path = path
        self.num_bad = 0  # lines that are no good answers
        self._known: set[str] = set()
        self._pending: list[dict[str, Any]] = []
        self._replaces = anew
        self._file = path.open("a+b")
        try:
            if not anew:
                self._read()
        except BaseException:
            self._file.close()
            raise

    @property
    def num_known(self) -> int:
        """Requests that have their line, on disk or about to be."""
        return len(self._known)

    def has(self, custom_id: str | None, refusal: dict[str, Any] | None) -> bool:
        """Whether a request, or the refusal of one, has its line."""
        return (custom_id if refusal is None else _key(refusal)) in self._known

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line for the next `write`."""
        self._count(line)
        self._pending.append(line)

    def write(self) -> None:
        """Everything added so far is on disk when this returns."""
        if not self._pending:
            return
        self._begin()
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._pending)
        self._file.write(text.encode("utf-8", errors="backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._begin()  # a run without a response has an empty file
            self.write()
        finally:
            self._file.close()

    def _begin(self) -> None:
        """The file is this run's from here on."""
        if self._replaces:
            self._file.truncate(0)
            self._replaces = False

    def _count(self, line: dict[str, Any]) -> None:
        self._known.add(_key(line))
        self.num_bad += problem(line) is not None

    def _read(self) -> None:
        """Whose lines are there; a last one that a crash cut short is cut off."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                self._count(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{self.path} exists and is no file of responses; --overwrite replaces it"
                ) from error
            end += len(line)
        self._file.truncate(end)


def _key(line: dict[str, Any]) -> str:
    """Whose line it is.

    One without a custom_id, or with one that another line has, is known by its error, which names
    file and line: the first of two equal ones may still wait for its answer.
    """
    custom_id, error = line["custom_id"], line["error"]
    is_second = error is not None and error.get("param") == "custom_id"
    return str(error["message"] if custom_id is None or is_second else custom_id)


def _new_id() -> str:
    return f"batch_req_{uuid4().hex}"
