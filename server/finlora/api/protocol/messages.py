"""The turns of a chat, text only."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_MESSAGES = 1024
MAX_PARTS = 1024
NO_TOOLS = "no served base calls tools"
TEXT_ONLY = "this server reads and writes text only"


def _without_nulls(value: Any) -> Any:
    """Clients send answers back as they got them: with fields that are null."""
    if not isinstance(value, dict):
        return value
    return {name: field for name, field in value.items() if field is not None}


def _joined_parts(value: Any) -> Any:
    """Content as one text: a string, or a list of text parts."""
    if not isinstance(value, list):
        return value
    if not 0 < len(value) <= MAX_PARTS:
        raise ValueError(f"must have 1 to {MAX_PARTS} parts")
    return "".join(map(_text_of, value))


def _text_of(part: Any) -> str:
    if not isinstance(part, dict):
        raise ValueError("a part of the content must be an object")
    kind = part.get("type")
    if not isinstance(kind, str):  # what is no text may nest too deeply to be shown
        raise ValueError("a part of the content must have a `type`, a string")
    if kind != "text":
        raise ValueError(f"a part of type {kind[:40]!r} is not supported: {TEXT_ONLY}")
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError("a text part must have `type` and `text`, a string, and nothing else")
    return part["text"]


def _known_role(value: Any) -> Any:
    if value in ("tool", "function"):
        raise ValueError(f"{value} is not supported: {NO_TOOLS}")
    return value


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        BeforeValidator(_known_role),
        Field(description="`developer` is `system`"),
    ]
    content: Annotated[
        str, BeforeValidator(_joined_parts), Field(description="string, or list of text parts")
    ]
    name: Annotated[
        str | None, Field(max_length=256, description="for templates that show names")
    ] = None

    def for_template(self) -> dict[str, str]:
        """As chat templates know it."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content, **named}


AnyMessage: TypeAlias = Annotated[Message, BeforeValidator(_without_nulls)]
