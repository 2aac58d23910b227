"""What langchain-openai makes of a server's answers, as JSON: run with the clients' Python.

python langchain_answers.py URL MODEL PROMPT
"""

import json
import sys
from typing import Literal

from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class Opinion(BaseModel):
    """An answer in a form."""

    sentiment: Literal["negative", "neutral", "positive"]
    strength: int = Field(ge=1, le=5)


def chats(url: str, model: str, prompt: str) -> dict[str, object]:
    """Of the class for chats."""
    chat = ChatOpenAI(
        base_url=url, api_key="unused", model=model, temperature=0, max_completion_tokens=40
    )
    answer = chat.invoke(prompt)
    scored = chat.bind(logprobs=True, top_logprobs=2).invoke(prompt)
    parts = list(chat.stream(prompt, stream_usage=True))
    usages = [part.usage_metadata for part in parts if part.usage_metadata]
    structured = chat.with_structured_output(Opinion)
    return {
        "invoke": answer.content,
        "usage": answer.usage_metadata,
        "finish_reason": answer.response_metadata["finish_reason"],
        "tokens": [entry["token"] for entry in scored.response_metadata["logprobs"]["content"]],
        "stream": [part.content for part in parts],
        "stream_usage": usages,
        "batch": [answer.content for answer in chat.batch([prompt, prompt[:5], prompt])],
        "structured": structured.invoke(prompt).model_dump(),
        "structured_stream": [part.model_dump() for part in structured.stream(prompt)],
    }


def completions(url: str, model: str, prompt: str) -> dict[str, object]:
    """Of the class for completions."""
    llm = OpenAI(base_url=url, api_key="unused", model=model, temperature=0, max_tokens=8)
    result = llm.generate([prompt, prompt[:5]])
    return {
        "invoke": llm.invoke(prompt),
        "stream": list(llm.stream(prompt)),
        "batch": llm.batch([prompt, prompt[:5]]),
        "usage": result.llm_output["token_usage"],
    }


if __name__ == "__main__":
    answers = {"chat": chats(*sys.argv[1:]), "completions": completions(*sys.argv[1:])}
    sys.stdout.write(json.dumps(answers))
