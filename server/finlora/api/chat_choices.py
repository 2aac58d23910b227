"""From a sequence's outputs to its answer in /v1/chat/completions, whole or in chunks."""

from collections.abc import Iterator, Sequence

from finlora.api.choices import finish_reason, label_logprobs
from finlora.api.held_tokens import HeldTokens, PlacedToken, shown
from finlora.api.protocol.chat_answers import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ContentLogprob,
    LabelledChatLogprobs,
    TopLogprob,
)
from finlora.api.tokens import Vocabulary
from finlora.engine.request import RequestOutput


class ChatChoiceBuilder:
    """Builds one answer."""

    def __init__(
        self, index: int, vocabulary: Vocabulary, *, logprobs: bool, labels: Sequence[str] = ()
    ) -> None:
        self._index = index
        self._vocabulary = vocabulary
        self._wants_logprobs = logprobs
        self._labels = labels
        self._held = HeldTokens(vocabulary)
        self._begun = False

    def whole(self, output: RequestOutput) -> ChatChoice:
        """The answer, of the one output of a sequence that is not streamed."""
        message = Answer(output.text)
        return ChatChoice(self._index, message, self._logprobs(output), finish_reason(output))

    def chunks(self, output: RequestOutput) -> Iterator[ChatChunkChoice]:
        """What this output adds: who speaks, then text, then why it ends; each by itself."""
        if not self._begun:
            self._begun = True
            yield ChatChunkChoice(self._index, {"role": "assistant", "content": ""})
        logprobs = self._logprobs(output)
        if output.text or (logprobs is not None and logprobs.content):
            yield ChatChunkChoice(self._index, {"content": output.text}, logprobs)
        reason = finish_reason(output)
        if reason is not None:
            yield ChatChunkChoice(self._index, {}, finish_reason=reason)

    def _logprobs(self, output: RequestOutput) -> ChatLogprobs | None:
        if not self._wants_logprobs:
            return None
        content = list(map(self._entry, self._held.take(output, len(output.text))))
        scores = label_logprobs(self._labels, output)
        if scores is None:
            return ChatLogprobs(content)
        return LabelledChatLogprobs(content, choice_logprobs=scores)

    def _entry(self, token: PlacedToken) -> ContentLogprob:
        row = token.logprob
        assert row is not None  # only the first token of a prompt has none
        top = [TopLogprob(*self._shown(token_id, logprob)) for token_id, logprob in row.top]
        return ContentLogprob(*self._shown(row.token_id, row.logprob), top)

    def _shown(self, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        piece = self._vocabulary.bytes_of(token_id)
        return self._vocabulary.label(token_id), shown(logprob), list(piece)
