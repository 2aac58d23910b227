"""What completions and chats share: how tokens are chosen, and what form the answer has."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from finlora.api.protocol.body import RequestBody, require
from finlora.api.protocol.fields import (
    MAX_SEQUENCES,
    CacheSalt,
    Count,
    Labels,
    LogitBias,
    Metadata,
    ModelName,
    Penalty,
    Probability,
    Seed,
    StopStrings,
    TokenId,
    UserName,
)
from finlora.api.protocol.structured import (
    AnswerForm,
    Lark,
    Regex,
    Schema,
    StructuredOutputs,
    form_of,
)
from finlora.engine.constraints import GrammarKind
from finlora.engine.sampling_params import REPETITION_PENALTIES


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: Annotated[bool, Field(description="a last event has the usage")] = False
    continuous_usage_stats: Annotated[
        bool, Field(description="so has every other, with the usage so far")
    ] = False
    include_obfuscation: Annotated[bool, Field(description="may only be false")] = False


class SamplingRequest(RequestBody):
    """A request for generated text."""

    # The names under which the number of tokens can be limited.
    limits: ClassVar[frozenset[str]] = frozenset({"max_tokens"})

    model: Annotated[ModelName, Field(description="base or adapter")]
    temperature: Annotated[float, Field(ge=0, le=2, description="0 takes the likeliest token")] = (
        1.0
    )
    top_p: Annotated[Probability, Field(description="0 leaves the likeliest token")] = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES, description="answers to each prompt")] = 1
    stop: Annotated[StopStrings, Field(default_factory=list, description="the text ends before it")]
    seed: Annotated[
        Seed | None, Field(description="answer i of a prompt is what seed + i gives alone")
    ] = None
    logit_bias: Annotated[LogitBias, Field(default_factory=dict, description="by token id")]
    presence_penalty: Annotated[
        Penalty, Field(description="taken from the logits of tokens in the answer")
    ] = 0.0
    frequency_penalty: Annotated[
        Penalty, Field(description="the same, times how often they are there")
    ] = 0.0
    stream: Annotated[bool, Field(description="server-sent events")] = False
    stream_options: Annotated[StreamOptions | None, Field(description="with `stream` only")] = None
    user: Annotated[UserName | None, Field(description="accepted and ignored")] = None
    metadata: Annotated[Metadata | None, Field(description="accepted and ignored")] = None

    top_k: Annotated[Count, Field(description="0: all")] = 0
    min_p: Annotated[
        Probability, Field(description="least probability, as a share of the likeliest token's")
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Field(
            ge=REPETITION_PENALTIES[0],
            le=REPETITION_PENALTIES[1],
            description="divides positive logits of tokens so far, multiplies negative ones",
        ),
    ] = 1.0
    ignore_eos: Annotated[bool, Field(description="goes on to `max_tokens`")] = False
    stop_token_ids: Annotated[
        list[TokenId],
        Field(default_factory=list, max_length=64, description="the text ends before it"),
    ]
    cache_salt: Annotated[
        CacheSalt, Field(description="requests with different salts never share cached prefixes")
    ] = ""
    structured_outputs: Annotated[
        StructuredOutputs | None, Field(description="the form of the answer")
    ] = None
    guided_choice: Annotated[
        Labels | None, Field(description="`structured_outputs.choice` by its older name")
    ] = None
    guided_regex: Annotated[
        Regex | None, Field(description="`structured_outputs.regex` by its older name")
    ] = None
    guided_json: Annotated[
        Schema | None, Field(description="`structured_outputs.json` by its older name")
    ] = None
    guided_grammar: Annotated[
        Lark | None, Field(description="`structured_outputs.grammar` by its older name")
    ] = None

    @property
    def num_candidates(self) -> int:
        """Sequences drawn for each prompt, of which `n` are returned."""
        return self.n

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens shown with each token; None: no log-probabilities."""
        raise NotImplementedError

    @property
    def form(self) -> AnswerForm | None:
        """The form that the answer must have."""
        return next(iter(self.forms()), None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of which the answer must be one; none: it is free."""
        return () if self.form is None else self.form.labels

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def forms(self) -> list[AnswerForm]:
        """All demands on the form; more than one is refused."""
        forms = []
        if self.structured_outputs is not None:
            forms += form_of("structured_outputs", self.structured_outputs)
        if self.guided_choice is not None:
            forms.append(AnswerForm("guided_choice", labels=tuple(self.guided_choice)))
        for param, kind, source in (
            ("guided_regex", GrammarKind.REGEX, self.guided_regex),
            ("guided_json", GrammarKind.JSON, self.guided_json),
            ("guided_grammar", GrammarKind.LARK, self.guided_grammar),
        ):
            if source is not None:
                forms.append(AnswerForm(param, kind=kind, source=source))
        return forms

    def check(self) -> None:
        """What no field can tell alone."""
        options = self.stream_options
        require(self.stream or options is None, "stream_options", "needs stream: true")
        require(
            options is None or not options.include_obfuscation,
            "stream_options",
            "include_obfuscation is not supported: frames are not padded",
        )
        require(
            options is None or options.include_usage or not options.continuous_usage_stats,
            "stream_options",
            "continuous_usage_stats needs include_usage: true",
        )
        if self.structured_outputs is not None:
            has_form = bool(form_of("", self.structured_outputs))
            require(has_form, "structured_outputs", "must have choice, regex, json or grammar")
        self._check_forms()

    def _check_forms(self) -> None:
        forms = self.forms()
        if not forms:
            return
        first, last = forms[0], forms[-1]
        same = "must have only one of choice, regex, json and grammar"
        other = f"cannot be used together with {first.param}"
        require(len(forms) == 1, last.param, same if first.param == last.param else other)
        require(len({*first.labels}) == len(first.labels), first.param, "must not repeat a label")
        what = f"cannot be used with {first.param}, which says where the answer ends"
        require(not self.ignore_eos, "ignore_eos", what)
        if first.labels:
            require(not self.stop, "stop", what)
            require(not self.stop_token_ids, "stop_token_ids", what)
