"""The form that an answer must have: a choice of labels, a regular expression, JSON, a grammar."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from finlora.api.protocol.fields import Labels
from finlora.engine.constraints import GrammarKind

MAX_GRAMMAR_BYTES = 64 * 1024
MAX_REGEX_CHARACTERS = 4096


def _schema_text(value: Any) -> Any:
    """A JSON schema, as an object or as its text, as text."""
    if isinstance(value, str):
        value = orjson.loads(value)  # JSONDecodeError is a ValueError
    if not isinstance(value, dict):
        raise ValueError("must be a JSON schema: an object")
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:  # a TypeError: it writes fewer levels than it reads
        raise ValueError(f"cannot be used: {error}") from error
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise ValueError(f"must be at most {MAX_GRAMMAR_BYTES} bytes")
    return text


Schema: TypeAlias = Annotated[str, BeforeValidator(_schema_text, json_schema_input_type=Any)]
Regex: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARACTERS)]
Lark: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_BYTES)]


class StructuredOutputs(BaseModel):
    """What form an answer must have; exactly one of these."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    choice: Annotated[Labels | None, Field(description="the answer is one of these labels")] = None
    regex: Annotated[
        Regex | None, Field(description="the answer matches from its beginning to its end")
    ] = None
    json_schema: Annotated[
        Schema | None, Field(alias="json", description="JSON that this schema describes")
    ] = None
    grammar: Annotated[Lark | None, Field(description="a text of this Lark grammar")] = None


class JSONSchemaFormat(BaseModel):
    """A schema as OpenAI names it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64, description="for the client's use")]
    description: Annotated[str | None, Field(max_length=4096, description="ignored")] = None
    json_schema: Annotated[Schema, Field(alias="schema", description="a JSON schema")]
    strict: Annotated[bool | None, Field(description="the schema is always followed")] = None


class ResponseFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Annotated[
        Literal["text", "json_object", "json_schema"], Field(description="the kind of form")
    ]
    json_schema: Annotated[
        JSONSchemaFormat | None, Field(description="with type `json_schema` only")
    ] = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """One demand on an answer's form and the field it came in."""

    param: str
    labels: tuple[str, ...] = ()
    kind: GrammarKind | None = None  # None: one of the labels
    source: str = ""


def form_of(param: str, outputs: StructuredOutputs) -> list[AnswerForm]:
    """The forms that a `structured_outputs` object demands."""
    sources = {
        GrammarKind.REGEX: outputs.regex,
        GrammarKind.JSON: outputs.json_schema,
        GrammarKind.LARK: outputs.grammar,
    }
    forms = [AnswerForm(param, kind=k, source=s) for k, s in sources.items() if s is not None]
    if outputs.choice is not None:
        forms.append(AnswerForm(param, labels=tuple(outputs.choice)))
    return forms
