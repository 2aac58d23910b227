"""Types of fields that several requests have, with their bounds."""

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

MAX_SEQUENCES = 128
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 512
MAX_LOGIT_BIASES = 1024
MAX_CHOICES = 256
MAX_CHOICE_CHARACTERS = 512
INT64 = 2**63


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _by_token_id(value: Any) -> Any:
    """JSON keys are strings; these are token ids."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_LOGIT_BIASES:  # before its keys are read
        raise ValueError(f"must have at most {MAX_LOGIT_BIASES} entries")
    if not all(key.isascii() and key.isdigit() and len(key) <= 9 for key in value):
        raise ValueError("keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


ModelName: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
Seed: TypeAlias = Annotated[int, Field(ge=-INT64, lt=INT64)]
StopString: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings: TypeAlias = Annotated[
    list[StopString], BeforeValidator(_listed), Field(max_length=MAX_STOP_STRINGS)
]
LogitBias: TypeAlias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_by_token_id),
    Field(max_length=MAX_LOGIT_BIASES),
]
Label: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARACTERS)]
Labels: TypeAlias = Annotated[list[Label], Field(min_length=1, max_length=MAX_CHOICES)]
UserName: TypeAlias = Annotated[str, Field(max_length=1024)]
Metadata: TypeAlias = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
CacheSalt: TypeAlias = Annotated[str, Field(max_length=256)]
