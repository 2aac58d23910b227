"""How the tokens of one request are chosen and when it ends."""

import math
from dataclasses import dataclass, field

from finlora.engine.constraints import Grammar
from finlora.engine.structured import ChoiceTree
from finlora.errors import InvalidSamplingParamsError

MAX_LOGPROBS = 20
# Logits that are divided by less leave what float32 holds, and with it the draw.
REPETITION_PENALTIES = (0.01, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one sequence. Raises InvalidSamplingParamsError with `param`."""

    max_tokens: int = 16  # 0: only the prompt is run (for its log-probabilities)
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; 0: of the chosen token; k: and of the k likeliest
    prompt_logprobs: int | None = None  # the same for every prompt token but the first
    # The answer is one of these labels and the end token. With `logprobs`, every label is scored.
    choice: ChoiceTree | None = None
    # Of the scored labels, the one of the highest probability, whatever the draw would be.
    takes_likeliest_label: bool = False
    grammar: Grammar | None = None  # the answer is a text of it
    stream: bool = False  # False: one RequestOutput at the end

    @classmethod
    def scoring(
        cls, choice: ChoiceTree, *, takes_likeliest_label: bool = False
    ) -> "SamplingParams":
        """For the probabilities of all labels."""
        return cls(
            max_tokens=choice.max_tokens,
            temperature=0,
            logprobs=0,
            choice=choice,
            takes_likeliest_label=takes_likeliest_label,
        )

    def __post_init__(self) -> None:
        self._check("max_tokens", self.max_tokens >= 0, "must be at least 0")
        self._check("temperature", 0 <= self.temperature <= 100, "must be from 0 to 100")
        self._check("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1")
        self._check("top_k", self.top_k >= 0, "must be at least 0")
        self._check("min_p", 0 <= self.min_p <= 1, "must be from 0 to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            self._check(name, -2 <= getattr(self, name) <= 2, "must be from -2 to 2")
        least, most = REPETITION_PENALTIES
        self._check(
            "repetition_penalty",
            least <= self.repetition_penalty <= most,
            f"must be from {least} to {most}",
        )
        for bias in self.logit_bias.values():
            self._check("logit_bias", -100 <= bias <= 100, "values must be from -100 to 100")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._check(
                name, value is None or 0 <= value <= MAX_LOGPROBS, f"must be 0 to {MAX_LOGPROBS}"
            )
        self._check("stop", all(self.stop), "must not contain an empty string")
        if self.choice is not None:
            self._check_choice(self.choice)
        if self.grammar is not None:
            self._check("grammar", self.choice is None, "cannot be used with choice")
            self._check("ignore_eos", not self.ignore_eos, "cannot be used with grammar")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a draw."""
        return self.temperature == 0

    @property
    def needs_history(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return not (
            self.presence_penalty == 0
            and self.frequency_penalty == 0
            and math.isclose(self.repetition_penalty, 1.0)
        )

    @property
    def scores_choice(self) -> bool:
        """Whether the probabilities of all labels are wanted."""
        return self.choice is not None and self.logprobs is not None

    @property
    def num_branches(self) -> int:
        """Tokens of labels to score."""
        if self.choice is None or self.logprobs is None:
            return 0
        return self.choice.num_branches

    def _check_choice(self, choice: ChoiceTree) -> None:
        # An answer is a whole label: nothing else may end it.
        for param in ("stop", "stop_token_ids", "ignore_eos"):
            self._check(param, not getattr(self, param), "cannot be used with choice")
        need = choice.max_tokens
        self._check(
            "max_tokens",
            self.max_tokens >= need,
            f"must be at least {need}, the tokens of the longest label and the end token",
        )

    def _check(self, param: str, holds: bool, what: str) -> None:
        if not holds:
            raise InvalidSamplingParamsError(f"{param} {what}", param=param)
