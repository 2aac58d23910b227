"""Answers that are one of some labels, through the openai package."""

import math
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, CompletionChoice

from finlora.prompts import TextEncoder
from tests import tiny_models
from tests.api.live import MAX_MODEL_LEN, LiveServer

TOKENIZER = tiny_models.tokenizer()
ENCODER = TextEncoder(TOKENIZER)
END = 2
PROMPT = "Input: Operating profit was 12.5 million euros.\nAnswer: "
LABELS = ["negative", "neutral", "positive", "positive outlook"]


def complete(client: openai.OpenAI, model: str = "news", **fields: Any) -> Completion:
    choice = fields.pop("choice", LABELS)
    fields = {"prompt": PROMPT, "temperature": 0, **fields}
    extra = {"structured_outputs": {"choice": choice}}
    answer: Completion = client.completions.create(model=model, extra_body=extra, **fields)
    return answer


def probabilities(choice: CompletionChoice) -> dict[str, float]:
    extra: dict[str, float] = choice.logprobs.choice_logprobs  # type: ignore[union-attr]
    return {label: math.exp(value) for label, value in extra.items()}


def echoed(client: openai.OpenAI, model: str, label: str) -> list[float]:
    """Log-probabilities of a label's tokens and its end, as parts of a prompt."""
    prompt = TOKENIZER.backend_tokenizer.encode(PROMPT).ids
    answer = [*ENCODER.encode_target(label), END]
    scored: Completion = client.completions.create(
        model=model, prompt=prompt + answer, max_tokens=0, echo=True, logprobs=0
    )
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    return logprobs.token_logprobs[-len(answer) :]


@pytest.mark.parametrize("model", ["tiny-llama", "news", "tweets"])
def test_every_label_has_its_exact_probability(client: openai.OpenAI, model: str) -> None:
    (choice,) = complete(client, model, logprobs=0).choices
    found = probabilities(choice)
    rows = {label: echoed(client, model, label) for label in LABELS}
    weights = {label: math.exp(math.fsum(row)) for label, row in rows.items()}
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    assert list(found) == LABELS
    assert found == pytest.approx(expected, rel=0.02)  # NF4 layers compute in bf16 on some CPUs
    assert sum(found.values()) == pytest.approx(1)
    assert choice.text in LABELS
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(rows[choice.text], abs=0.02)
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens[:-1]) == choice.text
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset[-1] == len(choice.text)


def test_both_names_say_the_same(client: openai.OpenAI) -> None:
    complete(client)  # so that both find the prompt in the prefix cache
    extra = {"guided_choice": LABELS}
    older = client.completions.create(
        model="news", prompt=PROMPT, temperature=0, logprobs=2, extra_body=extra
    )
    newer = complete(client, logprobs=2)
    assert older.choices == newer.choices
    assert older.usage is not None
    num_tokens = len(ENCODER.encode_target(older.choices[0].text)) + 1
    assert older.usage.completion_tokens == num_tokens
    assert complete(client).choices[0].text == newer.choices[0].text


def test_answers_without_log_probabilities_have_none(client: openai.OpenAI) -> None:
    assert complete(client).choices[0].logprobs is None
    plain = client.completions.create(model="news", prompt=PROMPT, logprobs=0)
    assert not hasattr(plain.choices[0].logprobs, "choice_logprobs")


def test_draws_of_many_prompts(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"temperature": 2, "seed": 3, "logprobs": 0}
    both = complete(client, prompt=[PROMPT, "Shares fell"], n=6, **fields).choices
    assert [choice.index for choice in both] == list(range(12))
    assert {choice.text for choice in both} <= {*LABELS}
    assert len({choice.text for choice in both}) > 1
    # A float32 product depends on its number of rows in the last bits.
    first = pytest.approx(probabilities(both[0]), rel=1e-4)
    assert all(probabilities(choice) == first for choice in both[:6])
    assert probabilities(both[0]) != pytest.approx(probabilities(both[6]))
    alone = complete(client, prompt="Shares fell", **(fields | {"seed": 5})).choices[0]
    assert alone.text == both[8].text


def test_best_of_ranks_labels_too(client: openai.OpenAI) -> None:
    answer = complete(client, temperature=2, seed=1, n=2, best_of=6)
    assert [choice.text in LABELS for choice in answer.choices] == [True, True]
    assert answer.choices[0].logprobs is None


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI, logprobs: int | None) -> None:
    whole = complete(client, logprobs=logprobs, n=2, seed=4).choices
    extra = {"structured_outputs": {"choice": LABELS}}
    stream = client.completions.create(
        model="news", prompt=PROMPT, temperature=0, logprobs=logprobs, n=2, seed=4, stream=True,
        extra_body=extra,
    )  # fmt: skip
    parts: list[CompletionChoice] = [choice for chunk in stream for choice in chunk.choices]
    for index in range(2):
        own = [part for part in parts if part.index == index]
        assert "".join(part.text for part in own) == whole[index].text
        assert own[-1].finish_reason == "stop"
        if logprobs is not None:
            assert probabilities(own[-1]) == pytest.approx(probabilities(whole[index]), rel=1e-3)


def test_echo_puts_the_prompt_in_front(client: openai.OpenAI) -> None:
    (choice,) = complete(client, echo=True, logprobs=0).choices
    assert choice.text.removeprefix(PROMPT) in LABELS
    assert sum(probabilities(choice).values()) == pytest.approx(1)


def test_a_label_is_text_even_where_it_reads_like_a_control_token(client: openai.OpenAI) -> None:
    label = "<|im_end|>"
    assert complete(client, choice=[label]).choices[0].text == label


def test_long_labels_need_no_max_tokens(client: openai.OpenAI) -> None:
    label = "The bank raised its outlook after a strong quarter: 12345678901234567890"
    assert len(ENCODER.encode_target(label)) > 16
    assert complete(client, choice=[label]).choices[0].text == label


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 1}, "max_tokens"),
        ({"max_tokens": 0, "echo": True}, "max_tokens"),
        ({"choice": []}, "structured_outputs"),
        ({"choice": ["a"] * 2}, "structured_outputs"),
        ({"stop": "x"}, "stop"),
        ({"prompt": [5] * (MAX_MODEL_LEN - 2), "logprobs": 0}, "prompt"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        complete(client, **fields)
    assert refusal.value.param == param


def test_other_structures_are_not_ignored(http: httpx.Client) -> None:
    body = {"model": "news", "prompt": PROMPT, "structured_outputs": {"structural_tag": "x"}}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"
    assert "structural_tag" in answer.json()["error"]["message"]


def test_labels_run_with_their_prompt_and_leave_nothing(
    client: openai.OpenAI, server: LiveServer, http: httpx.Client
) -> None:
    def steps() -> float:
        lines = http.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("finlora_step_seconds_count")]
        return float(found[0].split()[-1])

    complete(client, logprobs=0)  # the adapter is there now
    before = steps()
    complete(client, prompt=PROMPT + "unseen", logprobs=0)
    assert steps() == before + 1
    server.wait_until_idle()
