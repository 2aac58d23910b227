"""What administrators send and get. Every field is bounded; an unknown one is an error."""

from dataclasses import dataclass
from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finlora.api.protocol.body import first_error

Reference: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
REGISTERED = "name, alias or name@digest"


class AdminBody(BaseModel):
    """A small JSON object."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """The checked body; none at all is an empty object. Raises RequestError."""
        try:
            return cls.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise first_error(error) from error


class RollbackBody(AdminBody):
    """Which version the name shall mean, by the beginning of its digest."""

    to: Annotated[
        Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None,
        Field(description="8 to 64 hexadecimal digits; without it the version before"),
    ] = None


class AliasBody(AdminBody):
    """The adapter that an alias shall mean."""

    name: Annotated[Reference, Field(description="the adapter meant")]


class LoadBody(AdminBody):
    """vLLM's body; `lora_path` may only say the same as `lora_name`."""

    lora_name: Annotated[Reference, Field(description=REGISTERED)]
    lora_path: Annotated[
        Annotated[str, Field(max_length=4096)] | None,
        Field(description="may only name the same adapter: nothing is loaded from a path"),
    ] = None


class UnloadBody(AdminBody):
    """vLLM's body."""

    lora_name: Annotated[Reference, Field(description=REGISTERED)]


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """Where one version of an adapter is and what it is doing."""

    name: str
    digest: str
    current: bool  # what the name means now
    aliases: list[str]
    tiers: list[str]  # of "disk", "ram" and "slot"
    loading: bool
    pinned: bool
    requests: int  # that run or wait
    disk_bytes: int | None
    memory_bytes: int | None
    last_used: float | None  # seconds since the epoch
