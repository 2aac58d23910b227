"""POST /v1/chat/completions: OpenAI's definition for text, with the extensions of completions."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finlora.api.protocol.body import require
from finlora.api.protocol.fields import Count
from finlora.api.protocol.messages import MAX_MESSAGES, NO_TOOLS, TEXT_ONLY, AnyMessage
from finlora.api.protocol.sampling import SamplingRequest
from finlora.api.protocol.structured import AnswerForm, ResponseFormat
from finlora.engine.constraints import GrammarKind
from finlora.engine.sampling_params import MAX_LOGPROBS


class ChatRequest(SamplingRequest):
    """The body of POST /v1/chat/completions."""

    limits: ClassVar = frozenset({"max_completion_tokens", "max_tokens"})
    refused: ClassVar = {
        "tools": NO_TOOLS,
        "functions": NO_TOOLS,
        "function_call": NO_TOOLS,
        "audio": TEXT_ONLY,
        "prediction": "nothing is taken from a predicted answer",
        "reasoning_effort": "no served base reasons apart from its answer",
        "verbosity": "no served base was trained to follow it",
        "web_search_options": "this server asks no other one",
        "chat_template": "chats are rendered by the base's own template",
        "chat_template_kwargs": "chats are rendered by the base's own template",
    }

    messages: Annotated[
        list[AnyMessage],
        Field(min_length=1, max_length=MAX_MESSAGES, description="the chat so far"),
    ]
    max_completion_tokens: Annotated[
        Count | None, Field(ge=1, description="as many as fit, when it is left out")
    ] = None
    max_tokens: Annotated[
        Count | None, Field(ge=1, description="`max_completion_tokens` by its older name")
    ] = None
    logprobs: Annotated[bool, Field(description="log-probabilities of the answer")] = False
    top_logprobs: Annotated[
        int | None,
        Field(ge=0, le=MAX_LOGPROBS, description="likeliest tokens to show, with `logprobs` only"),
    ] = None
    response_format: Annotated[
        ResponseFormat | None, Field(description="the form of the answer")
    ] = None
    store: Annotated[bool, Field(description="may only be false")] = False
    modalities: Annotated[
        list[Literal["text"]] | None, Field(max_length=1, description="may only be text")
    ] = None
    tool_choice: Annotated[Literal["none"] | None, Field(description="may only be none")] = None
    parallel_tool_calls: Annotated[bool | None, Field(description="accepted and ignored")] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, Field(description="accepted and ignored")
    ] = None
    safety_identifier: Annotated[
        str | None, Field(max_length=1024, description="accepted and ignored")
    ] = None
    prompt_cache_key: Annotated[
        str | None, Field(max_length=1024, description="accepted and ignored")
    ] = None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens shown with each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_output(self) -> int | None:
        """The most tokens of the answer; None: as many as fit."""
        sent = self.max_completion_tokens
        return self.max_tokens if sent is None else sent

    def forms(self) -> list[AnswerForm]:
        """All demands on the form; more than one is refused."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return super().forms()
        schema = '{"type":"object"}'
        if wanted.json_schema is not None:
            schema = wanted.json_schema.json_schema
        return [*super().forms(), AnswerForm("response_format", (), GrammarKind.JSON, schema)]

    def check(self) -> None:
        """What no field can tell alone."""
        super().check()
        require(not self.store, "store", "must be false: this server keeps no answers")
        require(self.logprobs or self.top_logprobs is None, "top_logprobs", "needs logprobs: true")
        require(
            self.max_tokens is None or self.max_tokens == self.max_output,
            "max_tokens",
            "says something else than max_completion_tokens",
        )
        wanted = self.response_format
        if wanted is not None:
            has_schema = wanted.json_schema is not None
            require(
                has_schema == (wanted.type == "json_schema"),
                "response_format",
                "must have json_schema with type json_schema, and only then",
            )
