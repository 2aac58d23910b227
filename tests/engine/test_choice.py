"""Answers that are one of some labels, and the labels' probabilities, through the whole engine."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from finlora.engine.request import FinishReason
from finlora.engine.sampling_params import SamplingParams
from finlora.engine.structured import ChoiceTree
from finlora.errors import InvalidSamplingParamsError, PromptTooLongError
from tests.engine.choices import (
    APART,
    DRAWN,
    END,
    GREEDY,
    LABELS,
    SCORED,
    TREE,
    Rows,
    label_logprobs,
    mixed_rows,
    run,
)
from tests.engine.conftest import EngineMaker, World
from tests.engine.test_parity import oracle_rows, peft_model, prompts
from tests.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_probabilities_equal_transformers(
    architecture: str, worlds: Callable[[str], World], make_engine: EngineMaker
) -> None:
    world = worlds(architecture)
    engine = make_engine(world)
    names = [None, *world.adapters]
    rows: Rows = [
        (prompt, None if name is None else world.adapters[name])
        for prompt, name in zip(prompts(len(names)), names, strict=True)
    ]
    outputs = run(engine, rows, SCORED)
    with peft_model(world) as model:
        for (prompt, _), name, output in zip(rows, names, outputs, strict=True):
            expected = []
            for label in LABELS:
                rows_of_label = oracle_rows(model, name, prompt + label)[len(prompt) - 1 :]
                answer = torch.tensor([*label, END])
                chosen = rows_of_label.log_softmax(-1).gather(1, answer[:, None])
                expected.append(chosen.sum().item())
            assert label_logprobs(output) == pytest.approx(expected, abs=1e-4), name
            assert output.logprobs is not None
            index = LABELS.index(list(output.token_ids[:-1]))
            assert sum(t.logprob for t in output.logprobs) == pytest.approx(
                expected[index], abs=1e-4
            )


def test_the_likeliest_label_can_be_taken_for_the_likeliest_token(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    outputs = run(engine, mixed_rows(llama), replace(SCORED, takes_likeliest_label=True))
    for output, greedy in zip(outputs, run(engine, mixed_rows(llama), SCORED), strict=True):
        scores = label_logprobs(output)
        label = LABELS[scores.index(max(scores))]
        assert output.token_ids == (*label, END)
        assert scores == pytest.approx(label_logprobs(greedy), abs=1e-4)
        assert output.logprobs is not None
        total = sum(t.logprob for t in output.logprobs)
        assert total == pytest.approx(max(scores), abs=1e-4)
    # Else nothing would have been tested.
    assert any(
        output.token_ids != greedy.token_ids
        for output, greedy in zip(outputs, run(engine, mixed_rows(llama), SCORED), strict=True)
    )


def test_prompts_and_all_labels_run_in_one_step(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    rows = mixed_rows(llama)
    engine.warm(llama.adapters.values())
    engine.recorder.clear()
    run(engine, rows, SCORED)
    (batch,) = engine.recorder.batches
    branches = {tuple(label[:n]) for label in LABELS for n in range(1, len(label) + 1)}
    assert batch.num_tokens == sum(len(p) for p, _ in rows) + len(rows) * len(branches)


@pytest.mark.parametrize(
    ("choice", "num_steps"),
    [
        (APART, 1),  # the first token tells them apart
        (ChoiceTree([[40, 41, 42]]), 1),  # nothing to choose
        (ChoiceTree([[40, 41, 42], [40, 41, 17, 18]]), 1),  # what all begin with runs at once
        (ChoiceTree([[300, 301], [40, 41, 42], [40, 41, 17, 18]]), 2),
    ],
)
def test_tokens_without_a_choice_take_no_step(
    llama: World, make_engine: EngineMaker, choice: ChoiceTree, num_steps: int
) -> None:
    engine = make_engine(llama)
    params = replace(GREEDY, choice=choice, logit_bias={40: 100})
    output = engine.finish_one(prompts(2)[1], None, params)
    assert len(engine.recorder.batches) == num_steps
    assert output.token_ids[:-1] in choice.labels
    assert output.token_ids[0] == 40
    assert output.token_ids[-1] == END
    assert output.finish_reason is FinishReason.STOP
    assert output.text == engine.tokenizer.decode(list(output.token_ids[:-1]))
    assert output.num_output_tokens == len(output.token_ids)


def test_greedy_takes_the_likeliest_allowed_token_each_time(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    for prompt, adapter in mixed_rows(llama):
        tokens: list[int] = []
        while not tokens or tokens[-1] != END:
            node = TREE.node_after(tokens)
            allowed = [END if t == -1 else t for t in TREE.allowed(node)]
            one = SamplingParams(temperature=0, max_tokens=1)
            _, (logits,) = engine.run([(prompt + tokens, adapter)], one)[0]
            tokens.append(allowed[int(logits[allowed].argmax())])
        for params in (GREEDY, SCORED):
            assert list(engine.finish_one(prompt, adapter, params).token_ids) == tokens


def test_a_draw_is_the_same_with_and_without_scores(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    prompt, adapter = prompts(2)[1], llama.adapters["rslora"]
    answers = set()
    for seed in range(40):
        params = replace(DRAWN, seed=seed)
        drawn = engine.finish_one(prompt, adapter, params)
        scored = engine.finish_one(prompt, adapter, replace(params, logprobs=1))
        assert drawn.token_ids == scored.token_ids
        assert drawn.choice_logprobs is None
        answers.add(drawn.token_ids[:-1])
    assert len(answers) > 2
    assert answers <= set(TREE.labels)


def test_draws_are_as_frequent_as_they_are_likely(llama: World, make_engine: EngineMaker) -> None:
    """Labels that the first token tells apart: the draw is among those tokens alone."""
    engine = make_engine(llama)
    choice = ChoiceTree([[token] for token in (40, 17, 300, 12)])
    prompt, params = prompts(2)[1], SamplingParams(temperature=4.0, choice=choice)
    _, (logits,) = engine.run([(prompt, None)], SamplingParams(temperature=0, max_tokens=1))[0]
    expected = (logits[[40, 17, 300, 12]].double() / 4.0).softmax(-1)
    rows: Rows = [(prompt, None)] * 600
    ids = [engine.add(*row, replace(params, seed=i)) for i, row in enumerate(rows)]
    outputs = engine.finish()
    drawn = [choice.labels.index(outputs[i].token_ids[:-1]) for i in ids]
    counts = torch.bincount(torch.tensor(drawn), minlength=4) / len(rows)
    torch.testing.assert_close(counts.double(), expected, atol=0.07, rtol=0)
    assert expected.max() < 0.9, "the draw is certain: the test shows nothing"


def test_log_probabilities_of_the_prompt_come_with_them(
    llama: World, make_engine: EngineMaker
) -> None:
    prompt = prompts(5)[4]
    plain = make_engine(llama).finish_one(
        prompt, None, SamplingParams(max_tokens=0, prompt_logprobs=2)
    )
    for limit in (2048, 9):
        engine = make_engine(llama, max_num_batched_tokens=limit)
        output = engine.finish_one(prompt, None, replace(SCORED, prompt_logprobs=2))
        assert output.prompt_logprobs is not None
        assert plain.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        for found, expected in zip(output.prompt_logprobs[1:], plain.prompt_logprobs[1:],
                                   strict=True):  # fmt: skip
            assert found is not None
            assert expected is not None
            assert found.token_id == expected.token_id
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert label_logprobs(output) == pytest.approx(
            label_logprobs(make_engine(llama).finish_one(prompt, None, SCORED)), abs=1e-4
        )


def test_the_likeliest_tokens_are_shown_whether_allowed_or_not(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama)
    prompt = prompts(2)[1]
    output = engine.finish_one(prompt, None, replace(SCORED, logprobs=3))
    assert output.logprobs is not None
    for i, entry in enumerate(output.logprobs):
        text = prompt + list(output.token_ids[:i])
        plain = SamplingParams(temperature=0, max_tokens=1, logprobs=3)
        expected = engine.finish_one(text, None, plain).logprobs
        assert expected is not None
        assert [t for t, _ in entry.top] == [t for t, _ in expected[0].top]
        assert [v for _, v in entry.top] == pytest.approx([v for _, v in expected[0].top], abs=1e-4)


def test_a_stream_has_the_same_parts(llama: World, make_engine: EngineMaker) -> None:
    engine = make_engine(llama)
    choice = ChoiceTree([[300, 301], [40, 41, 42], [40, 41, 17, 18]])
    params = replace(GREEDY, choice=choice, logit_bias={40: 100}, stream=True)
    engine.add(prompts(1)[0], None, params)
    outputs = []
    while engine.engine.has_requests:
        outputs += engine.step()
    assert outputs[0].token_ids == (40, 41)
    assert sum((o.token_ids for o in outputs), ())[:-1] in choice.labels
    whole = engine.finish_one(prompts(1)[0], None, replace(params, stream=False))
    assert "".join(o.text for o in outputs) == whole.text
    assert [o.finish_reason for o in outputs] == [None, FinishReason.STOP]


@pytest.mark.parametrize("labels", [[[5, END]], [[512]], [[-1]]])
def test_tokens_that_cannot_be_in_a_label_are_refused(
    llama: World, make_engine: EngineMaker, labels: list[list[int]]
) -> None:
    engine = make_engine(llama)
    with pytest.raises(InvalidSamplingParamsError) as refusal:
        engine.add([5], None, replace(GREEDY, choice=ChoiceTree(labels)))
    assert refusal.value.param == "choice"


def test_labels_that_do_not_fit_behind_the_prompt_are_refused(
    llama: World, make_engine: EngineMaker
) -> None:
    engine = make_engine(llama, max_model_len=64)
    choice = ChoiceTree([[token] for token in range(10, 60)])
    engine.add([5] * 30, None, replace(GREEDY, choice=choice))
    with pytest.raises(PromptTooLongError, match="50 of labels to score"):
        engine.add([5] * 30, None, replace(SCORED, choice=choice))
    assert len(engine.finish()) == 1
