"""Token ids to text as they come: whole characters only, and never a part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# Decoders of the sentencepiece kind drop the space in front of the very first token: a few tokens
# of the prompt keep the text what it is in the middle of a sequence.
NUM_CONTEXT_TOKENS = 6
REPLACEMENT = "\ufffd"  # of a character that lacks bytes


class Detokenizer:
    """The text of one request's output tokens."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt_token_ids[-NUM_CONTEXT_TOKENS:])
        self._stream = self._begin(self._context)
        self._token_ids: list[int] = []
        self._stop = tuple(stop)
        self._text = ""  # all text so far, cut before a stop string
        self._num_taken = 0  # characters already given out
        self.stop_reason: str | None = None

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text

    def append(self, token_id: int) -> bool:
        """Add a token; True when a stop string is complete."""
        self._token_ids.append(token_id)
        piece = self._stream.step(self._tokenizer, token_id)
        if piece is not None and not self._text:
            piece = self._without_torn(piece)
        return piece is not None and self._extend(piece)

    def flush(self) -> None:
        """No more tokens: an unfinished character becomes U+FFFD, as in a decode of the whole."""
        if self.stop_reason is not None:
            return
        whole = self._decode(self._context + self._token_ids)
        text = self._without_torn(whole.removeprefix(self._before))
        if text.startswith(self._text):
            self._extend(text[len(self._text) :])

    def take(self, *, final: bool) -> str:
        """Text that is certain and was not given out yet; all of it when `final`."""
        end = len(self._text) if final else len(self._text) - self._num_held_back()
        taken = self._text[self._num_taken : end]
        self._num_taken = max(self._num_taken, end)
        return taken

    def _begin(self, context: list[int]) -> DecodeStream:
        """A stream behind the prompt's last tokens.

        They may end within a character, whose end is still to come. A stream that began there
        would give out the context together with it.
        """
        whole = context
        self._before = text = self._decode(whole)
        while whole and self._before.endswith(REPLACEMENT):
            whole = whole[:-1]
            self._before = self._decode(whole)
        self._torn = text[len(self._before) :]
        stream = DecodeStream(ids=whole, skip_special_tokens=True)
        for token_id in context[len(whole) :]:
            stream.step(self._tokenizer, token_id)
        return stream

    def _without_torn(self, text: str) -> str:
        """Less what is the prompt's: all of its torn end, or all but a character now complete."""
        complete = self._torn.rstrip(REPLACEMENT)
        return text.removeprefix(self._torn if text.startswith(self._torn) else complete)

    def _extend(self, piece: str) -> bool:
        # A stop string may begin in what was there, but not before its length allows.
        longest = max(map(len, self._stop), default=0)
        search_from = max(len(self._text) - longest + 1, 0)
        self._text += piece
        found = [(self._text.find(stop, search_from), stop) for stop in self._stop]
        found = [(position, stop) for position, stop in found if position >= 0]
        if not found:
            return False
        position, self.stop_reason = min(found)
        self._text = self._text[:position]
        return True

    def _num_held_back(self) -> int:
        """Length of the longest end of the text that may be the beginning of a stop string."""
        if self.stop_reason is not None:
            return 0
        return max((_overlap(self._text, stop) for stop in self._stop), default=0)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


def _overlap(text: str, stop: str) -> int:
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
