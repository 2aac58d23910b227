"""Token ids to text as they come: whole characters only, and never a part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# Decoders of the sentencepiece kind drop the space in front of the very first token: a few tokens
# of the prompt keep the text what it is in the middle of a sequence.
NUM_CONTEXT_TOKENS = 6


class Detokenizer:
    """The text of one request's output tokens."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt_token_ids[-NUM_CONTEXT_TOKENS:])
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=True)
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
        return piece is not None and self._extend(piece)

    def flush(self) -> None:
        """No more tokens: an unfinished character becomes U+FFFD, as in a decode of the whole."""
        if self.stop_reason is not None:
            return
        before = self._decode(self._context)
        whole = self._decode(self._context + self._token_ids)
        if whole.startswith(before + self._text):
            self._extend(whole[len(before) + len(self._text) :])

    def take(self, *, final: bool) -> str:
        """Text that is certain and was not given out yet; all of it when `final`."""
        end = len(self._text) if final else len(self._text) - self._num_held_back()
        taken = self._text[self._num_taken : end]
        self._num_taken = max(self._num_taken, end)
        return taken

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
