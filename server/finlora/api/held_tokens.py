"""Tokens of an answer whose text is not out yet, each with its place in the text."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from finlora.api.tokens import TextCursor, Vocabulary
from finlora.engine.request import RequestOutput, TokenLogprob

# JSON has no -Infinity; a token that cannot be drawn gets this, as in other servers.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class PlacedToken:
    """A token, its log-probabilities (none: the first of a prompt), and where its text begins."""

    token_id: int
    logprob: TokenLogprob | None
    offset: int


class HeldTokens:
    """What may still become a stop string is held back here, as its text is."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._cursor = TextCursor()
        self._pending: deque[PlacedToken] = deque()
        self._text_end = 0

    def begin(self, prompt: Iterable[PlacedToken], num_characters: int) -> None:
        """The prompt is a part of the text."""
        self._pending.extend(prompt)
        self._cursor = TextCursor(num_characters)

    def take(self, output: RequestOutput, num_characters: int) -> list[PlacedToken]:
        """The tokens of the text so far, which has grown by so many characters with this output."""
        self._text_end += num_characters
        for row in output.logprobs or ():
            special = self._vocabulary.is_special(row.token_id)
            piece = b"" if special else self._vocabulary.bytes_of(row.token_id)
            self._pending.append(PlacedToken(row.token_id, row, self._cursor.advance(piece)))
        cut = isinstance(output.stop_reason, str)
        flush = output.finish_reason is not None and not cut
        released = []
        while self._pending and (flush or self._pending[0].offset < self._text_end):
            released.append(self._pending.popleft())
        return released


def shown(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LOWEST_LOGPROB)
