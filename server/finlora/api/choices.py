"""From a sequence's outputs to the parts of its choice in /v1/completions."""

from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

from finlora.api.encoding import EncodedPrompt
from finlora.api.held_tokens import HeldTokens, PlacedToken, shown
from finlora.api.protocol.completions import Choice, ChoiceLogprobs, Logprobs
from finlora.api.tokens import Vocabulary
from finlora.engine.request import FinishReason, RequestOutput, TokenLogprob
from finlora.engine.structured import normalised


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
        self._held = HeldTokens(vocabulary)

    def add(self, output: RequestOutput) -> Choice:
        """The part that this output adds."""
        text = output.text
        if self._echo:
            self._echo = False
            text = self._echo_prompt(output.prompt_logprobs or ()) + text
        logprobs = self._logprobs(output, len(text)) if self._wants_logprobs else None
        return Choice(self._index, text, logprobs, finish_reason(output))

    def _echo_prompt(self, prompt_logprobs: Sequence[TokenLogprob | None]) -> str:
        prompt = self._prompt
        rows: Iterator[PlacedToken] = iter(())
        if self._wants_logprobs:
            columns = (prompt.token_ids, prompt_logprobs, prompt.offsets)
            rows = (PlacedToken(*row) for row in zip(*columns, strict=True))
        self._held.begin(rows, len(prompt.text))
        return prompt.text

    def _logprobs(self, output: RequestOutput, num_characters: int) -> Logprobs:
        columns = self._columns(self._held.take(output, num_characters))
        scores = label_logprobs(self._labels, output)
        if scores is None:
            return Logprobs(**columns)
        return ChoiceLogprobs(**columns, choice_logprobs=scores)

    def _columns(self, tokens: list[PlacedToken]) -> _Columns:
        return {
            "tokens": [self._vocabulary.label(token.token_id) for token in tokens],
            "token_logprobs": [
                None if token.logprob is None else shown(token.logprob.logprob) for token in tokens
            ],
            "top_logprobs": [self._top(token.logprob) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _top(self, row: TokenLogprob | None) -> dict[str, float] | None:
        """The likeliest first; the chosen one is among them."""
        if row is None:
            return None
        label = self._vocabulary.label
        top = {label(i): shown(value) for i, value in reversed(row.top)}
        top.setdefault(label(row.token_id), shown(row.logprob))
        return dict(reversed(top.items()))


def label_logprobs(labels: Sequence[str], output: RequestOutput) -> dict[str, float] | None:
    """Log-probability of every label, over all labels, when the output has them."""
    if output.choice_logprobs is None:
        return None
    values = map(shown, normalised(output.choice_logprobs))
    return dict(zip(labels, values, strict=True))


def finish_reason(output: RequestOutput) -> Literal["stop", "length"] | None:
    """Why the sequence ended, in OpenAI's words."""
    if output.finish_reason is None:
        return None
    return "stop" if output.finish_reason is FinishReason.STOP else "length"
