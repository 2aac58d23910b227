"""POST /v1/classify: the label of each text and how likely every label is."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from finlora.api.protocol.body import RequestBody, require
from finlora.api.protocol.fields import MAX_CHOICES as MAX_LABELS
from finlora.api.protocol.fields import CacheSalt, Label, Metadata, ModelName, UserName
from finlora.api.protocol.usage import Usage
from finlora.prompts import INPUT_FIELD

MAX_INPUTS = 1024
MAX_TEMPLATE_CHARACTERS = 16_384


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_template(template: str) -> str:
    if template.count(INPUT_FIELD) != 1:
        raise ValueError(f"must contain {INPUT_FIELD} exactly once")
    return template


class ClassifyRequest(RequestBody):
    """The body of POST /v1/classify."""

    model: Annotated[ModelName, Field(description="base or adapter")]
    input: Annotated[
        list[str],
        BeforeValidator(_listed),
        Field(
            min_length=1,
            max_length=MAX_INPUTS,
            description="one text or many; each is answered alone",
        ),
    ]
    labels: Annotated[
        list[Label] | None,
        Field(min_length=2, max_length=MAX_LABELS, description="the adapter's own"),
    ] = None
    template: Annotated[
        str | None,
        AfterValidator(_check_template),
        Field(
            max_length=MAX_TEMPLATE_CHARACTERS,
            description=f"the prompt, with {INPUT_FIELD} where the text goes; the adapter's own",
        ),
    ] = None
    return_probabilities: Annotated[
        bool, Field(description="the probability of every label, not only of the likeliest")
    ] = False
    cache_salt: Annotated[
        CacheSalt, Field(description="requests with different salts never share cached prefixes")
    ] = ""
    user: Annotated[UserName | None, Field(description="accepted and ignored")] = None
    metadata: Annotated[Metadata | None, Field(description="accepted and ignored")] = None

    def check(self) -> None:
        """What no field can tell alone."""
        labels = self.labels or []
        require(len({*labels}) == len(labels), "labels", "must not repeat a label")


@dataclass(frozen=True, slots=True)
class Classified:
    """What one text is."""

    index: int
    label: str
    probability: float
    probabilities: dict[str, float] | None
    object: Literal["classification"] = "classification"


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer of POST /v1/classify."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    data: list[Classified]
    usage: Usage
    object: Literal["list"] = "list"
