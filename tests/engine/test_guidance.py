"""Grammars and the answers that follow them: re and jsonschema as oracles."""

import ast
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finlora.engine.constraints import Grammar, GrammarKind
from finlora.engine.grammar_process import CheckedCompiler
from finlora.engine.guidance import GuidanceCompiler, TokenizerFacts
from finlora.errors import InvalidSamplingParamsError
from tests import tiny_models

BACKEND = tiny_models.tokenizer().backend_tokenizer
FACTS = TokenizerFacts(BACKEND.to_str(), tiny_models.VOCAB_SIZE, (2,))
COMPILER = GuidanceCompiler(FACTS)
HOSTILE = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3500)) + 'r3500: "a"'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "label": {"enum": ["negative", "neutral", "positive"]},
        "share": {"type": "integer", "minimum": 0, "maximum": 100},
        "why": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["label", "share", "why"],
    "additionalProperties": False,
}


def schema(value: Any) -> Grammar:
    return COMPILER.compile(GrammarKind.JSON, json.dumps(value))


def written(grammar: Grammar, seed: int, *, forced: bool = False, limit: int = 500) -> str:
    """A text that the masks alone allow, drawn from all of them."""
    answer, draw = grammar.start(), random.Random(seed)
    token_ids: list[int] = []
    while not answer.must_end and len(token_ids) < limit:
        allowed = [i for i, byte in enumerate(answer.allowed()) if byte]
        if not allowed or (answer.may_end and draw.random() < 0.2):
            break
        token_ids.append(draw.choice(allowed))
        answer.consume(token_ids[-1])
        if forced:
            token_ids += answer.forced()
    assert answer.may_end
    text: str = BACKEND.decode(token_ids, skip_special_tokens=False)
    return text


@pytest.mark.parametrize("forced", [False, True])
def test_json_follows_its_schema(forced: bool) -> None:
    grammar = schema(SCHEMA)
    for seed in range(30):
        text = written(grammar, seed, forced=forced)
        answer = json.loads(text)
        jsonschema.validate(answer, SCHEMA)
        assert not re.search(r"\n|  ", re.sub(r'"[^"]*"', "", text))


PATTERNS = [
    "(negative|neutral|positive)",
    "[A-Z]{2,4}: -?[0-9]{1,3}\\.[0-9]%",
    "(ab|a)(c|bcd)?",
    "x{3,5}y*z",
    "[éü€🎉]{1,4}",
]


@given(st.sampled_from(PATTERNS), st.integers(0, 1000), st.booleans())
def test_text_matches_its_expression(pattern: str, seed: int, forced: bool) -> None:
    grammar = COMPILER.compile(GrammarKind.REGEX, pattern)
    assert re.fullmatch(pattern, written(grammar, seed, forced=forced))


def test_a_grammar_can_nest() -> None:
    source = 'start: sum\nsum: num ("+" num)*\nnum: /[1-9][0-9]?/ | "(" sum ")"'
    grammar = COMPILER.compile(GrammarKind.LARK, source)
    texts = [written(grammar, seed) for seed in range(60)]
    assert any("(" in text for text in texts)
    for text in texts:
        ast.parse(text, mode="eval")


def test_what_can_only_follow_is_told() -> None:
    answer = schema(SCHEMA).start()
    (start,) = BACKEND.encode("{").ids
    answer.consume(start)
    assert BACKEND.decode(answer.forced()).startswith('"label": "')


def test_an_answer_starts_anew_each_time() -> None:
    grammar = COMPILER.compile(GrammarKind.REGEX, "ab")
    first, second = grammar.start(), grammar.start()
    before = second.allowed()
    first.consume(BACKEND.encode("a").ids[0])
    assert second.allowed() == grammar.start().allowed() == before != first.allowed()


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (GrammarKind.REGEX, "(a"),
        (GrammarKind.REGEX, "(?=a)b"),
        (GrammarKind.REGEX, "(" * 2000 + "a" + ")" * 2000),
        (GrammarKind.LARK, "start: unknown"),
        (GrammarKind.LARK, "no rule"),
        (GrammarKind.LARK, 'start: s\ns: s "x"'),
        (GrammarKind.LARK, "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
        (GrammarKind.JSON, '{"type": "surprise"}'),
        (GrammarKind.JSON, '{"not": {"type": "string"}}'),
        (GrammarKind.JSON, '{"enum": []}'),
        (GrammarKind.JSON, '{"$ref": "http://localhost/schema"}'),
        (GrammarKind.JSON, '{"$ref": "file:///etc/passwd"}'),
        (GrammarKind.JSON, '{"$ref": "#"}'),
    ],
)
def test_what_cannot_be_followed_is_refused(kind: GrammarKind, source: str) -> None:
    with pytest.raises(InvalidSamplingParamsError) as refusal:
        COMPILER.compile(kind, source)
    assert refusal.value.param == "grammar"
    assert len(str(refusal.value)) < 400


def test_too_many_ways_to_go_on_are_refused() -> None:
    properties = {f"p{i}": {"type": "string", "maxLength": 50} for i in range(1500)}
    with pytest.raises(InvalidSamplingParamsError):
        schema({"type": "object", "properties": properties})


@pytest.fixture
def checked() -> Iterator[CheckedCompiler]:
    compiler = CheckedCompiler(FACTS)
    yield compiler
    compiler.close()


def test_a_grammar_that_ends_its_process_is_refused(checked: CheckedCompiler) -> None:
    assert written(checked.compile(GrammarKind.REGEX, "a|b"), 1) in "ab"
    with pytest.raises(InvalidSamplingParamsError, match="too much"):
        checked.compile(GrammarKind.LARK, HOSTILE)
    assert written(checked.compile(GrammarKind.REGEX, "a|b"), 1) in "ab"


def test_a_process_that_is_gone_is_started_again(checked: CheckedCompiler) -> None:
    checked.compile(GrammarKind.REGEX, "a")
    checked.close()
    with pytest.raises(InvalidSamplingParamsError, match="unclosed"):
        checked.compile(GrammarKind.REGEX, "(a")


@pytest.mark.slow
def test_a_schema_that_takes_minutes_is_refused(checked: CheckedCompiler) -> None:
    source = {"allOf": [{"type": "integer", "multipleOf": n} for n in (7, 11, 13, 17, 19, 23, 29)]}
    with pytest.raises(InvalidSamplingParamsError, match="too much"):
        checked.compile(GrammarKind.JSON, json.dumps(source))
