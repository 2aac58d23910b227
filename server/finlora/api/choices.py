"""From a sequence's outputs to the parts of its choice: text, and log-probabilities."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from finlora.api.encoding import EncodedPrompt
from finlora.api.protocol import Choice, ChoiceLogprobs, Logprobs
from finlora.api.tokens import TextCursor, Vocabulary
from finlora.engine.request import FinishReason, RequestOutput, TokenLogprob
from finlora.engine.structured import normalised

# JSON has no -Infinity; a token that cannot be drawn gets this, as in other servers.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class _Entry:
    token: str
    logprob: float | None
    top: dict[str, float] | None
    offset: int


class _Columns(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChoiceBuilder:
    """Builds one choice; each output gives the part that is new."""

    def __init__(
        self,
        index: int,
        prompt: EncodedPrompt,
        vocabulary: Vocabulary,
        *,
        echo: bool,
        logprobs: bool,
        labels: Sequence[str] = (),
    ) -> None:
        self._index = index
        self._prompt = prompt
        self._vocabulary = vocabulary
        self._wants_logprobs = logprobs
        self._labels = labels
        self._echo = echo
        self._text_end = 0
        self._cursor = TextCursor()
        self._pending: deque[_Entry] = deque()

    def add(self, output: RequestOutput) -> Choice:
        """The part that this output adds."""
        text = output.text
        if self._echo:
            self._echo = False
            text = self._echo_prompt(output.prompt_logprobs or ()) + text
        self._text_end += len(text)
        logprobs = self._take_logprobs(output) if self._wants_logprobs else None
        return Choice(self._index, text, logprobs, _finish_reason(output))

    def _echo_prompt(self, prompt_logprobs: Sequence[TokenLogprob | None]) -> str:
        prompt = self._prompt
        if self._wants_logprobs:
            rows = zip(prompt.token_ids, prompt_logprobs, prompt.offsets, strict=True)
            self._pending.extend(self._entry(*row) for row in rows)
        self._cursor = TextCursor(len(prompt.text))
        return prompt.text

    def _take_logprobs(self, output: RequestOutput) -> Logprobs:
        for row in output.logprobs or ():
            special = self._vocabulary.is_special(row.token_id)
            piece = b"" if special else self._vocabulary.bytes_of(row.token_id)
            self._pending.append(self._entry(row.token_id, row, self._cursor.advance(piece)))
        columns = _columns(self._released(output))
        if output.choice_logprobs is None:
            return Logprobs(**columns)
        values = [max(value, LOWEST_LOGPROB) for value in normalised(output.choice_logprobs)]
        return ChoiceLogprobs(
            **columns, choice_logprobs=dict(zip(self._labels, values, strict=True))
        )

    def _released(self, output: RequestOutput) -> list[_Entry]:
        """Entries whose text is out: what may still become a stop string is held back here too."""
        cut = isinstance(output.stop_reason, str)
        flush = output.finish_reason is not None and not cut
        released = []
        while self._pending and (flush or self._pending[0].offset < self._text_end):
            released.append(self._pending.popleft())
        return released

    def _entry(self, token_id: int, row: TokenLogprob | None, offset: int) -> _Entry:
        label = self._vocabulary.label
        if row is None:
            return _Entry(label(token_id), None, None, offset)
        logprob = max(row.logprob, LOWEST_LOGPROB)
        top = {label(i): max(value, LOWEST_LOGPROB) for i, value in reversed(row.top)}
        top.setdefault(label(token_id), logprob)
        return _Entry(label(token_id), logprob, dict(reversed(top.items())), offset)


def _columns(entries: list[_Entry]) -> _Columns:
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [entry.top for entry in entries],
        "text_offset": [entry.offset for entry in entries],
    }


def _finish_reason(output: RequestOutput) -> Literal["stop", "length"] | None:
    if output.finish_reason is None:
        return None
    return "stop" if output.finish_reason is FinishReason.STOP else "length"
