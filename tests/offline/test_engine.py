"""`finlora.Engine` as a user meets it; the oracle is PEFT on the same base."""

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import finlora
from finlora import Classification, Engine
from finlora.bases.locate import display_name
from finlora.errors import (
    AdapterError,
    AdapterNotFoundError,
    ConfigError,
    EngineStoppedError,
    FinLoRAError,
    InvalidSamplingParamsError,
    PromptTooLongError,
    RequestError,
)
from finlora.model import best_dtype
from tests.api.live import register
from tests.offline.conftest import LABELS, TEMPLATE, Folders, make_engine

HEADLINES = (
    "Operating profit rose 12 percent",
    "The airline cut its outlook",
    "Shares fell when fuel costs rose",
    "The bank would keep its dividend unchanged",
)


def oracle(folders: Folders, prompts: list[str], labels: tuple[str, ...]) -> list[list[float]]:
    """Product over each label's tokens and the end token, renormalised, by PEFT."""
    dtype = best_dtype(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        base = AutoModelForCausalLM.from_pretrained(folders.base, dtype=dtype)
        model = PeftModel.from_pretrained(base, str(folders.adapter)).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders.base)
    found = []
    for prompt in prompts:
        context = tokenizer(prompt).input_ids
        sums = []
        for label in labels:
            target = [*tokenizer(label, add_special_tokens=False).input_ids, 2]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + target])).logits[0].float()
            rows = logits[len(context) - 1 : -1].log_softmax(-1)
            sums.append(rows[range(len(target)), target].sum())
        found.append(torch.stack(sums).softmax(0).tolist())
    return found


def test_classify_gives_exact_probabilities(engine: Engine, folders: Folders) -> None:
    prompts = [TEMPLATE.replace("{input}", text) for text in HEADLINES]
    expected = oracle(folders, prompts, LABELS)
    found = engine.classify(HEADLINES, adapter="news")
    exact = best_dtype(torch.device("cpu")) is torch.float32
    for answer, chances in zip(found, expected, strict=True):
        assert list(answer.probabilities) == list(LABELS)
        values = list(answer.probabilities.values())
        assert values == pytest.approx(chances, abs=1e-4 if exact else 0.05)
        assert sum(values) == pytest.approx(1)
        assert answer.probability == max(values) == answer.probabilities[answer.label]


def test_own_labels_and_template_work_without_an_adapter(engine: Engine) -> None:
    (answer,) = engine.classify(["Profit rose"], labels=["up", "down"], template="{input} is ")
    assert set(answer.probabilities) == {"up", "down"}


def test_generate_follows_prompts_verbatim(engine: Engine) -> None:
    prompts = [f"{text} because" for text in HEADLINES]
    greedy = engine.generate(prompts, adapter="news", max_tokens=5, temperature=0)
    assert [answer.num_prompt_tokens > 0 for answer in greedy] == [True] * len(prompts)
    assert {answer.finish_reason for answer in greedy} <= {"stop", "length"}
    alone = [engine.generate([p], adapter="news", max_tokens=5, temperature=0) for p in prompts]
    assert [answer for (answer,) in alone] == greedy
    assert engine.generate(prompts, max_tokens=5, temperature=0) != greedy


def test_sampling_options_reach_the_engine(engine: Engine) -> None:
    first, again, other = (
        engine.generate(["The bank"], max_tokens=12, seed=seed, ignore_eos=True)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    (cut,) = engine.generate(["The bank"], max_tokens=12, seed=1, stop=first[0].text[3:5])
    assert cut.text == first[0].text[: first[0].text.index(first[0].text[3:5])]


def test_an_endless_stream_is_answered_in_order(engine: Engine) -> None:
    pulled = 0

    def texts() -> Iterator[str]:
        nonlocal pulled
        for number in count():
            pulled += 1
            yield HEADLINES[number % len(HEADLINES)]

    expected = [answer.label for answer in engine.classify(HEADLINES, adapter="news")]
    answers = engine.classify(texts(), adapter="news")
    found = [answer.label for answer in islice(answers, 600)]
    assert found == expected * 150
    assert pulled <= 600 + 256  # memory does not grow with the stream


def test_streams_may_be_mixed(engine: Engine) -> None:
    labels, template = ["up", "down"], "{input}: "
    apart = (
        engine.classify(HEADLINES, labels=labels, template=template),
        engine.classify(HEADLINES, adapter="news"),
    )
    pairs = zip(
        engine.classify(iter(HEADLINES), labels=labels, template=template),
        engine.classify(iter(HEADLINES), adapter="news"),
        strict=True,
    )
    for pair, expected in zip(pairs, zip(*apart, strict=True), strict=True):
        for found, alone in zip(pair, expected, strict=True):
            assert found.probabilities == pytest.approx(alone.probabilities)


def test_threads_may_share_an_engine(engine: Engine) -> None:
    start = threading.Barrier(4)

    def classify(_: int) -> list[Classification]:
        start.wait(60)
        return engine.classify(HEADLINES * 20, adapter="news")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(classify, range(4)))
    labels = [[answer.label for answer in result] for result in results]
    assert labels == [labels[0]] * 4


def test_the_first_bad_text_ends_a_stream_and_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError):
        engine.classify([*HEADLINES, "word " * 500, *HEADLINES], adapter="news")
    with pytest.raises(RequestError, match="not a text but NoneType"):
        engine.classify([*HEADLINES, None], adapter="news")  # type: ignore[list-item]


def test_an_abandoned_stream_leaves_nothing(engine: Engine) -> None:
    answers = engine.classify(iter(HEADLINES * 3), adapter="news")
    next(answers)
    del answers


def test_errors_can_take_the_places_of_answers(engine: Engine) -> None:
    classifier = engine.classifier(adapter="news")
    bad = RequestError("line 7 has no text")
    found = list(classifier.each(["Profit rose", bad, "word " * 500, "Profit fell"]))
    assert [type(answer) for answer in found] == [
        Classification,
        RequestError,
        PromptTooLongError,
        Classification,
    ]
    assert found[1] is bad


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"adapter": "nobody"}, AdapterNotFoundError, "nobody"),
        ({"labels": ["a", "b"]}, RequestError, "template"),
        ({"template": "{input}"}, RequestError, "labels"),
        ({"labels": ["a", "b"], "template": "no field"}, ConfigError, "exactly once"),
        ({"labels": ["a", "a"], "template": "{input}"}, RequestError, "same"),
    ],
)
def test_a_task_that_cannot_be_is_refused_at_once(
    engine: Engine, arguments: dict[str, object], error: type[FinLoRAError], what: str
) -> None:
    with pytest.raises(error, match=what):
        engine.classify(iter(HEADLINES), **arguments)  # type: ignore[call-overload]


def test_wrong_options_are_named(engine: Engine) -> None:
    with pytest.raises(InvalidSamplingParamsError, match="stream is no option"):
        engine.generate(["a"], stream=True)  # type: ignore[call-overload]
    with pytest.raises(InvalidSamplingParamsError, match="top_p must be"):
        engine.generate(["a"], top_p=2)
    with pytest.raises(RequestError, match="give a list"):
        engine.generate("a")


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_bias_for_no_token_is_named_and_harms_no_other(engine: Engine, token_id: int) -> None:
    innocent = engine.generate(iter(HEADLINES), max_tokens=4, temperature=0)
    first = next(innocent)  # the others are in the batch by now
    with pytest.raises(InvalidSamplingParamsError, match=f"logit_bias: token id {token_id} ") as no:
        engine.generate(["a"], logit_bias={1: 1.0, token_id: 2.0})
    assert no.value.param == "logit_bias"
    assert [first, *innocent] == engine.generate(HEADLINES, max_tokens=4, temperature=0)


def test_wrong_settings_are_named_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="max_lora is not a setting"):
        Engine("no-such-base", max_lora=3)
    with pytest.raises(ConfigError, match="max_loras"):
        Engine("no-such-base", max_loras=-1)


def test_a_context_too_short_for_anything_is_named(folders: Folders) -> None:
    with pytest.raises(ConfigError, match="max_model_len is 8"):
        Engine(str(folders.base), registry=folders.registry, device="cpu", max_model_len=8)


def test_adapters_beyond_the_limits_are_not_offered(
    engine: Engine, folders: Folders, tmp_path: Path
) -> None:
    register(tmp_path, engine._runner.engine.spec, "wide", seed=0)
    there = replace(folders, registry=tmp_path)
    for limits, names in (({}, ["wide"]), ({"max_lora_rank": 1}, []), ({"max_loras": 0}, [])):
        with make_engine(there, **limits) as limited:
            assert limited.adapters == names


def test_added_adapters_are_this_engines_own(engine: Engine, folders: Folders) -> None:
    assert engine.adapters == ["news"]
    assert engine.model == display_name(str(folders.base))
    assert not folders.registry.exists()
    with pytest.raises(AdapterError, match="taken"):
        engine.add_adapter(folders.adapter, name=engine.model)
    with pytest.raises(AdapterError):
        engine.add_adapter(folders.base, name="not-an-adapter")


def test_a_closed_engine_says_so(folders: Folders) -> None:
    engine = make_engine(folders, max_loras=0)
    answers = engine.generate(iter(HEADLINES * 100), max_tokens=1)
    assert next(answers).token_ids
    engine.close()
    with pytest.raises(EngineStoppedError):
        list(answers)
    with pytest.raises(EngineStoppedError):
        engine.generate(["a"])
    engine.close()


def test_the_package_is_imported_at_once_and_the_engine_when_asked() -> None:
    probe = "import sys, finlora; sys.exit({'torch', 'pydantic'} & set(sys.modules) or 0)"
    subprocess.run([sys.executable, "-c", probe], check=True)
    assert finlora.Engine is Engine
    with pytest.raises(AttributeError, match="nothing"):
        _ = finlora.nothing  # type: ignore[attr-defined]
