"""From text to token ids: one contract for training, serving and evaluation.

A prompt is read verbatim by the tokenizer's own rule for special tokens. A target is tokenised
apart from its prompt, without special tokens, because the server only ever sees the prompt. Text
that a user supplies for a template never becomes a control token.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from finlora.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INPUT_FIELD = "{input}"
CONTRACT = "prompt verbatim; target apart, without special tokens; end-of-sequence after it"


def encode_prompt(tokenizer: "Tokenizer | PreTrainedTokenizerFast", text: str) -> list[int]:
    """Token ids of a prompt as it stands; control tokens written in it are control tokens."""
    return _backend(tokenizer).encode(text).ids


class TextEncoder:
    """Encodes text in which control tokens are plain text. Owns its tokenizer: thread-safe."""

    def __init__(self, tokenizer: "Tokenizer | PreTrainedTokenizerFast") -> None:
        # A copy: the switch belongs to the tokenizer, and others use theirs at the same time.
        self._tokenizer = Tokenizer.from_str(_backend(tokenizer).to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode_target(self, text: str) -> list[int]:
        """Token ids of an answer, without anything before or after it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_template(self, template: "PromptTemplate", text: str) -> list[int]:
        """Token ids of a template filled with a user's text."""
        return self._tokenizer.encode(template.render(text)).ids


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Text around one `{input}`. Other braces are plain text: FinLoRA's label lists have them."""

    text: str

    def __post_init__(self) -> None:
        if self.text.count(INPUT_FIELD) != 1:
            raise ConfigError(f"a prompt template must contain {INPUT_FIELD} exactly once")

    def render(self, text: str) -> str:
        """The prompt for a text."""
        before, _, after = self.text.partition(INPUT_FIELD)
        return before + text + after

    def extract(self, prompt: str) -> str | None:
        """The text that this prompt was rendered from; None when it is of another form."""
        before, _, after = self.text.partition(INPUT_FIELD)
        if len(prompt) < len(before) + len(after):
            return None
        if not prompt.startswith(before) or not prompt.endswith(after):
            return None
        return prompt[len(before) : len(prompt) - len(after)]


def instruction_template(instruction: str) -> PromptTemplate:
    """FinLoRA's format. The space after `Answer:` belongs to it."""
    return PromptTemplate(f"Instruction: {instruction}\nInput: {INPUT_FIELD}\nAnswer: ")


def sentiment_template(kind: str, labels: Sequence[str]) -> PromptTemplate:
    """FinLoRA's sentiment question about one kind of text, such as `news` or `tweet`."""
    choices = "{" + "/".join(labels) + "}"
    return instruction_template(
        f"What is the sentiment of this {kind}? Please choose an answer from {choices}."
    )


def prompt_format_hash(template: PromptTemplate | None, eos_token_ids: Sequence[int]) -> str:
    """SHA-256 over what an adapter's prompts and answers look like to the model."""
    text = None if template is None else template.text
    facts = {"contract": CONTRACT, "template": text, "eos_token_ids": list(eos_token_ids)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _backend(tokenizer: "Tokenizer | PreTrainedTokenizerFast") -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend
