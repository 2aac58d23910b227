"""A base's own way to write a chat as a prompt.

The template comes with the base and runs in transformers' sandbox. Control tokens that it writes
are control tokens; the same characters in a message are plain text.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from jinja2 import TemplateError
from tokenizers import AddedToken

from finlora.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Turn = Mapping[str, str]

# Code points that Unicode reserves for a program's own use: one that no message has marks cuts.
NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


class ChatTemplate:
    """Writes chats as token ids. Thread-safe."""

    def __init__(self, source: str, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.source = source
        self.special_tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._tokenizer = tokenizer.backend_tokenizer
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._control = tuple(t.content for t in added if _is_control(t, source))
        self._beginnings = {token[:i] for token in self._control for i in range(1, len(token))}
        self._longest = max(map(len, self._control), default=0)

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> Self | None:
        """The template that comes with a tokenizer, if one does."""
        source: str | dict[str, str] | None = tokenizer.chat_template
        if isinstance(source, dict):  # several by name, of which the others are for tools
            source = source.get("default")
        return None if source is None else cls(source, tokenizer)

    def encode(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the chat, up to where the answer begins.

        Raises RequestError when the template refuses the chat: some take no system turn, or want
        the roles in a fixed order.
        """
        texts = [text for turn in turns for text in turn.values()]
        cut = next((c for c in NONCHARACTERS if not any(c in text for text in texts)), None)
        if cut is None:
            raise RequestError("messages: too many code points are no characters", param="messages")
        marked = [{k: self._mark(text, cut) for k, text in turn.items()} for turn in turns]
        rendered = self._render(marked, add_generation_prompt)
        # Parts are tokenised apart, so no control token comes together across a cut.
        pieces = (piece for piece in rendered.split(cut) if piece)
        return [
            i
            for piece in pieces
            for i in self._tokenizer.encode(piece, add_special_tokens=False).ids
        ]

    def _render(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        # Imports torch, which takes seconds: not before the engine is there.
        from transformers.utils.chat_template_utils import render_jinja_template

        variables: dict[str, Any] = {
            **self.special_tokens,
            "conversations": [turns],
            "chat_template": self.source,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            rendered: Any = render_jinja_template(**variables)
        except TemplateError as error:
            raise RequestError(f"messages: {error}", param="messages") from error
        ((text,), _) = rendered
        return str(text)

    def _mark(self, text: str, cut: str) -> str:
        """The text with a mark inside every control token and behind what may become one."""
        places = sorted({*self._inside(text), *self._at_the_end(text)})
        parts = [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]
        return cut.join(parts)

    def _inside(self, text: str) -> Iterator[int]:
        for token in self._control:
            start = text.find(token)
            while start >= 0:
                yield start + 1
                start = text.find(token, start + 1)

    def _at_the_end(self, text: str) -> Iterator[int]:
        # The next turn's text may follow at once and bring the rest of a control token.
        ends = (text[-i:] for i in range(1, min(self._longest, len(text) + 1)))
        if any(end in self._beginnings for end in ends):
            yield len(text)


def _is_control(token: AddedToken, template: str) -> bool:
    """Special tokens, and others that the template writes; not a line break, which all text has."""
    content: str = token.content
    return len(content) > 1 and (token.special or (not content.isspace() and content in template))
