"""Answers that follow a grammar, through the whole engine, beside others that do not."""

import json
import re
from dataclasses import replace

import jsonschema
import pytest

from finlora.engine.constraints import Grammar, GrammarKind
from finlora.engine.guidance import GuidanceCompiler, TokenizerFacts
from finlora.engine.request import FinishReason, RequestOutput
from finlora.engine.sampling_params import SamplingParams
from finlora.errors import InvalidSamplingParamsError
from tests.engine.choices import mixed_rows
from tests.engine.conftest import EngineMaker, World
from tests.engine.harness import GREEDY, EngineUnderTest
from tests.engine.requests import make_request
from tests.engine.test_guidance import FACTS, SCHEMA, schema
from tests.engine.test_parity import prompts

PATTERN = "[A-Z]{2,4}: -?[0-9]{1,3}\\.[0-9]%"
DRAWN = SamplingParams(temperature=1.5, seed=7, max_tokens=120)
BASE = GuidanceCompiler(FACTS)


def regex(pattern: str) -> Grammar:
    return BASE.compile(GrammarKind.REGEX, pattern)


def finished(engine: EngineUnderTest, ids: list[str]) -> list[RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    while engine.engine.has_requests:
        outputs |= {output.request_id: output for output in engine.step() if output.finish_reason}
    return [outputs[i] for i in ids]


def test_every_row_of_a_mixed_batch_keeps_its_own_form(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    rows = mixed_rows(llama)
    forms = [replace(DRAWN, grammar=schema(SCHEMA)), replace(DRAWN, grammar=regex(PATTERN)), GREEDY]
    ids = [engine.add(prompt, adapter, forms[i % 3]) for i, (prompt, adapter) in enumerate(rows)]
    for i, output in enumerate(finished(engine, ids)):
        if i % 3 == 0:
            jsonschema.validate(json.loads(output.text), SCHEMA)
        elif i % 3 == 1:
            assert re.fullmatch(PATTERN, output.text)
        else:
            assert output.text == engine.finish_one(*rows[i], GREEDY).text
        assert (output.finish_reason is FinishReason.STOP) == (i % 3 != 2)


@pytest.mark.parametrize(
    "extra",
    [
        {"temperature": 0},
        {"top_k": 3},
        {"top_p": 0.2},
        {"min_p": 0.5},
        {"repetition_penalty": 5.0, "presence_penalty": 2.0},
        {"logit_bias": dict.fromkeys(range(90, 100), 100.0)},
    ],
)
def test_sampling_stays_within_the_form(
    llama: World, make_engine: EngineMaker, extra: dict[str, object]
) -> None:
    engine = make_engine(llama)
    params = replace(DRAWN, grammar=regex(PATTERN), **extra)  # type: ignore[arg-type]
    for prompt in prompts(4):
        output = engine.finish_one(prompt, None, params)
        assert re.fullmatch(PATTERN, output.text)
        assert output.finish_reason is FinishReason.STOP


def test_what_leaves_no_choice_takes_no_step(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    params = replace(DRAWN, grammar=regex("[ab] Shares of the airline fell when fuel costs rose"))
    output = engine.finish_one(prompts(1)[0], None, params)
    assert output.text[1:] == " Shares of the airline fell when fuel costs rose"
    assert len(output.token_ids) > len(engine.recorder.batches) < 4


def test_with_log_probabilities_every_token_has_its_own(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    params = replace(DRAWN, grammar=schema(SCHEMA), logprobs=2)
    output = engine.finish_one(prompts(1)[0], None, params)
    jsonschema.validate(json.loads(output.text), SCHEMA)
    assert output.logprobs is not None
    assert [row.token_id for row in output.logprobs] == list(output.token_ids)


def test_a_limit_and_a_stop_string_cut_it(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    whole = replace(DRAWN, grammar=schema(SCHEMA))
    prompt = prompts(1)[0]
    text = engine.finish_one(prompt, None, whole).text
    short = engine.finish_one(prompt, None, replace(whole, max_tokens=6))
    assert short.finish_reason is FinishReason.LENGTH
    assert len(short.token_ids) == 6
    assert text.startswith(short.text)
    stopped = engine.finish_one(prompt, None, replace(whole, stop=('"share"',)))
    assert stopped.text == text[: text.index('"share"')]


def test_the_end_is_allowed_only_where_the_answer_is_whole(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    (end,) = engine.engine.spec.eos_token_ids
    wants_to_end = replace(DRAWN, logit_bias={end: 100.0}, grammar=regex("(ab){2,50}"))
    output = engine.finish_one(prompts(1)[0], None, wants_to_end)
    assert output.text == "abab"
    assert output.finish_reason is FinishReason.STOP


def test_an_end_token_that_the_base_does_not_have_is_left_out() -> None:
    params = replace(DRAWN, grammar=regex("a?"))
    request = replace(
        make_request([5], params),
        eos_token_ids=frozenset({2, 10**6}),
        constraint=regex("a?").start(),
    )
    allowed = request.allowed_by_grammar()
    assert len(allowed) == FACTS.vocab_size
    assert allowed[2] == 1


def test_an_answer_is_the_same_alone_in_a_batch_and_after_preemption(
    llama: World, make_engine: EngineMaker
) -> None:
    params = replace(DRAWN, grammar=schema(SCHEMA))
    rows = [(prompt, None) for prompt in prompts(6)]
    roomy, narrow = make_engine(llama), make_engine(llama, kv_cache_bytes=1 << 18)
    alone = [roomy.finish_one(*row, params).text for row in rows]
    together = finished(roomy, [roomy.add(*row, params) for row in rows])
    squeezed = finished(narrow, [narrow.add(*row, params) for row in rows])
    assert [output.text for output in together] == alone
    assert [output.text for output in squeezed] == alone
    assert narrow.engine._scheduler.num_preemptions > 0


def test_a_grammar_that_becomes_too_much_fails_its_own_request_only(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    greedy_grammar = regex("((a{1,1000}){1,1000}){1,1000}")
    params = SamplingParams(
        temperature=0, max_tokens=200, grammar=greedy_grammar, logit_bias={2: -100.0}
    )
    ids = [engine.add(prompts(2)[0], None, params), engine.add(prompts(2)[1], None, GREEDY)]
    failed, other = finished(engine, ids)
    assert isinstance(failed.error, InvalidSamplingParamsError)
    assert failed.error.param == "grammar"
    assert other.error is None


def test_a_grammar_and_labels_exclude_each_other() -> None:
    with pytest.raises(InvalidSamplingParamsError):
        SamplingParams(grammar=regex("a"), ignore_eos=True)


def test_facts_are_those_of_the_tiny_base(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama).engine
    own = TokenizerFacts(
        engine.tokenizer.to_str(), engine.vocab_size, tuple(engine.spec.eos_token_ids)
    )
    assert json.loads(own.tokenizer)["model"] == json.loads(FACTS.tokenizer)["model"]
    assert (own.vocab_size, own.eos_token_ids) == (FACTS.vocab_size, FACTS.eos_token_ids)
