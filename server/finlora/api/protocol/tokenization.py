"""POST /tokenize and /detokenize, in vLLM's shapes."""

from typing import Annotated

from pydantic import Field

from finlora.api.protocol.body import RequestBody, require
from finlora.api.protocol.fields import ModelName, TokenId
from finlora.api.protocol.messages import MAX_MESSAGES, AnyMessage


class TokenizeRequest(RequestBody):
    """The body of POST /tokenize: a prompt or a chat."""

    model: Annotated[ModelName | None, Field(description="only checked: adapters share it")] = None
    prompt: Annotated[str | None, Field(description="taken verbatim")] = None
    messages: Annotated[
        list[AnyMessage] | None,
        Field(min_length=1, max_length=MAX_MESSAGES, description="a chat, in place of a prompt"),
    ] = None
    add_special_tokens: Annotated[
        bool, Field(description="what the tokenizer puts around a prompt; chats have their own")
    ] = True
    add_generation_prompt: Annotated[
        bool, Field(description="up to where the answer of a chat begins")
    ] = True
    return_token_strs: Annotated[bool, Field(description="the text of every token, too")] = False

    def check(self) -> None:
        """What no field can tell alone."""
        require(self.prompt is not None or self.messages is not None, "prompt", "is missing")
        both = self.prompt is not None and self.messages is not None
        require(not both, "messages", "cannot be used together with prompt")


class DetokenizeRequest(RequestBody):
    """The body of POST /detokenize."""

    model: Annotated[ModelName | None, Field(description="only checked: adapters share it")] = None
    tokens: Annotated[list[TokenId], Field(description="token ids")]
