"""Grammars by llguidance; no other file knows it. No torch here: the checking process has none.

llguidance bounds the work of one step, but not of compiling: see grammar_process.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from finlora.engine.constraints import Grammar, GrammarKind
from finlora.errors import InvalidSamplingParamsError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# As json.dumps writes it. Small models would otherwise fill their answers with white space.
JSON_STYLE: "JsonCompileOptions" = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}
# A step of one answer holds up the steps of all: a tenth of llguidance's own limits, which allow
# masks of 300 ms and lexers of 500 MB.
MAX_ITEMS_IN_ROW = 1000
MAX_STEP_ITEMS = 5000
MAX_STEP_FUEL = 100_000
MAX_LEXER_STATES = 20_000
MAX_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What masks depend on: a tokenizer as JSON, the width of the logits, the base's end tokens."""

    tokenizer: str
    vocab_size: int
    eos_token_ids: Sequence[int]


class GuidanceCompiler:
    """Compiles grammars for one base."""

    def __init__(self, facts: TokenizerFacts) -> None:
        self._facts = facts

    def compile(self, kind: GrammarKind, source: str) -> Grammar:
        """A grammar that can begin. Raises InvalidSamplingParamsError with the reason."""
        limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS_IN_ROW,
            step_max_items=MAX_STEP_ITEMS,
            step_lexer_fuel=MAX_STEP_FUEL,
            max_lexer_states=MAX_LEXER_STATES,
            verbose_errors=False,
        )
        try:
            text = _in_its_own_language(kind, source)
        except ValueError as error:
            raise _invalid(str(error)) from error
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        grammar = GuidedGrammar(matcher, tuple(self._tokenizer.eos_tokens))
        # Much shows only at the first step; some of it only once the lexer has been used.
        for _ in range(2):
            answer = grammar.start()
            answer.allowed()
            answer.forced()
        return grammar

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        eos = list(self._facts.eos_token_ids) or None
        return LLTokenizer(self._facts.tokenizer, n_vocab=self._facts.vocab_size, eos_token=eos)


class GuidedGrammar:
    """A compiled grammar."""

    def __init__(self, matcher: LLMatcher, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        _check(matcher)

    def start(self) -> "GuidedAnswer":
        """For one answer, from its beginning."""
        return GuidedAnswer(self._matcher.deep_copy(), self._eos_token_ids)


class GuidedAnswer:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids

    @property
    def may_end(self) -> bool:
        """Whether what there is so far is a whole answer."""
        return self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> bytearray:
        """For each token of the vocabulary, whether it may come next (0: no); 0 for end tokens."""
        mask = bytearray(self._matcher.compute_logit_bias())
        _check(self._matcher)
        for token_id in self._eos_token_ids:
            mask[token_id] = 0
        if mask.count(0) == len(mask) and not self.may_end:
            raise _invalid("no token of this base can go on with it")
        return mask

    def consume(self, token_id: int) -> None:
        """Add an allowed token."""
        self._matcher.consume_token(token_id)
        _check(self._matcher)

    def forced(self) -> list[int]:
        """Tokens that can only follow now; they are consumed."""
        token_ids = self._matcher.compute_ff_tokens()
        if token_ids:
            self._matcher.consume_tokens(token_ids)
        _check(self._matcher)
        return token_ids


def _in_its_own_language(kind: GrammarKind, source: str) -> str:
    match kind:
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(source)
        case GrammarKind.JSON:
            return LLMatcher.grammar_from_json_schema(source, overrides=JSON_STYLE)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(source)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise _invalid(matcher.get_error().replace("<non-verbose/>", ""))


def _invalid(reason: str) -> InvalidSamplingParamsError:
    text = " ".join(reason.split())[:MAX_MESSAGE_CHARACTERS]
    return InvalidSamplingParamsError(f"cannot be followed: {text}", param="grammar")
