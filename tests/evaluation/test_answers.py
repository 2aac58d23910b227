"""The engine in this process and a server give the same answers, and they are the model's own."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finlora.adapters.adapter import Adapter
from finlora.adapters.label_task import softmax
from finlora.adapters.registry import AdapterRegistry
from finlora.config import Quantization, Settings
from finlora.datasets.rows import Message, Row
from finlora.errors import AdapterNotFoundError, ConfigError, EngineError
from finlora.evaluation.answers import Answerer, Question, Reply
from finlora.evaluation.engine_answers import EngineAnswers, engine_answers
from finlora.evaluation.server_answers import ServerAnswers
from finlora.model import LoadedBase, base_spec, load_base
from finlora.prompts import TextEncoder, encode_prompt
from finlora.training.batches import ExampleEncoder
from tests.api.live import LiveServer, register, serving
from tests.tiny_models import build
from tests.training.rows import LABELS, TEMPLATE, make_rows

PROMPTS = [row.context for row in make_rows()[:6]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("eval")
    model = build("llama", folder / "tiny-llama")
    made = register(folder / "registry", base_spec(str(model)), "news", seed=0)
    calibrated(AdapterRegistry(folder / "registry"), made)
    return Settings(
        model=str(model),
        quantization=Quantization.NONE,
        device="cpu",
        registry=folder / "registry",
        max_model_len=256,
        max_num_seqs=4,
        kv_cache_bytes=1 << 22,
        shutdown_seconds=5,
    )


def calibrated(registry: AdapterRegistry, made: Adapter) -> Adapter:
    """The same weights with labels, template and temperature of their own."""
    own = {"labels": [*LABELS], "prompt_template": TEMPLATE.text, "temperature": 3.0}
    manifest = made.manifest.model_copy(update=own)
    config = (made.folder / "adapter_config.json").read_bytes()
    return registry.register("sure", made.variant, config, registry.read(made), manifest)


@pytest.fixture(scope="module")
def registry(settings: Settings) -> AdapterRegistry:
    assert settings.registry is not None
    return AdapterRegistry(settings.registry)


@pytest.fixture(scope="module")
def engine(settings: Settings, registry: AdapterRegistry) -> Iterator[EngineAnswers]:
    with engine_answers(settings, registry, ["base", "news", "sure"]) as answers:
        yield answers


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[LiveServer]:
    with serving(settings) as live:
        yield live


@pytest.fixture(scope="module")
def plain(settings: Settings) -> LoadedBase:
    return load_base(settings.model, Quantization.NONE, device="cpu", training=True)


def ask(answerer: Answerer, questions: list[Question]) -> list[Reply]:
    replies = dict(answerer.ask(questions))
    return [replies[i] for i in range(len(questions))]


def test_probabilities_are_the_models_own(engine: EngineAnswers, plain: LoadedBase) -> None:
    replies = ask(engine, [Question("base", prompt, LABELS) for prompt in PROMPTS])
    encoder, eos = TextEncoder(plain.tokenizer), plain.spec.eos_token_ids[0]
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        context = encode_prompt(plain.tokenizer, prompt)
        sums = []
        for label in LABELS:
            target = [*encoder.encode_target(label), eos]
            logits = plain.model(input_ids=torch.tensor([context + target])).logits[0]
            rows = logits.float().log_softmax(-1)[len(context) - 1 : -1]
            sums.append(rows.gather(1, torch.tensor(target)[:, None]).sum().item())
        total = sum(map(math.exp, sums))
        expected = [math.exp(value) / total for value in sums]
        tolerance = 1e-4 if plain.compute_dtype is torch.float32 else 0.02
        assert reply.probabilities == pytest.approx(expected, abs=tolerance)
        assert reply.num_prompt_tokens == len(context)


def test_generation_is_greedy_and_ten_tokens_long(engine: EngineAnswers, plain: LoadedBase) -> None:
    (reply,) = ask(engine, [Question("base", PROMPTS[0], ())])
    context = torch.tensor([encode_prompt(plain.tokenizer, PROMPTS[0])])
    output = plain.model.generate(  # type: ignore[operator]
        context, attention_mask=torch.ones_like(context), max_new_tokens=10, do_sample=False
    )
    assert reply.text == plain.tokenizer.decode(
        output[0, context.shape[1] :], skip_special_tokens=True
    )
    assert reply.probabilities == ()
    assert reply.num_output_tokens == output.shape[1] - context.shape[1]


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_server_answers_as_the_engine_does(
    engine: EngineAnswers, server: LiveServer, labels: tuple[str, ...]
) -> None:
    base = server.state.engine.spec.name
    here = [Question(model, p, labels) for model in (base, "news") for p in PROMPTS]
    with ServerAnswers(f"{server.url}/v1/", concurrency=4) as remote:
        there = ask(remote, here)
    for ours, theirs in zip(
        ask(engine, [Question("base" if q.model == base else q.model, q.prompt, labels)
                     for q in here]), there, strict=True,
    ):  # fmt: skip
        assert ours.text == theirs.text
        assert ours.probabilities == pytest.approx(theirs.probabilities, rel=1e-4)
        assert ours.num_prompt_tokens == theirs.num_prompt_tokens
        assert ours.num_output_tokens == theirs.num_output_tokens
    assert there[0] != there[6]


@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1]])
def test_a_calibrated_adapter_is_as_sure_on_a_server(
    engine: EngineAnswers, server: LiveServer, labels: tuple[str, ...]
) -> None:
    text = "Profit rose.<|im_end|>"
    here = [Question(model, TEMPLATE.render(text), labels) for model in ("news", "sure")]
    here += [Question("sure", "Profit rose: ", labels), Question("sure", PROMPTS[0], LABELS[:2])]
    with ServerAnswers(server.url) as remote:
        there = ask(remote, here)
    for ours, theirs in zip(ask(engine, here), there, strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, rel=1e-4)
        assert ours.num_prompt_tokens == theirs.num_prompt_tokens
    (plain,) = ask(engine, [Question("news", PROMPTS[0], labels)])
    (sure,) = ask(engine, [Question("sure", PROMPTS[0], labels)])
    cooled = softmax([math.log(p) / 3 for p in plain.probabilities])
    assert sure.probabilities == pytest.approx(cooled, rel=1e-4)


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_chat_is_asked_as_it_was_trained(
    engine: EngineAnswers, server: LiveServer, plain: LoadedBase, labels: tuple[str, ...]
) -> None:
    messages = (Message("system", "Be short."), Message("user", "Profit rose."))
    row = Row("Be short.\nProfit rose.", "positive", messages)
    context = ExampleEncoder(plain.tokenizer, 2).encode(row).context
    question = Question("news", row.context, labels, row.messages)
    verbatim = Question("news", str(plain.tokenizer.decode(context)), labels)
    with ServerAnswers(server.url) as remote:
        (there,) = ask(remote, [question])
    here, same = ask(engine, [question, verbatim])
    assert here.num_prompt_tokens == there.num_prompt_tokens == len(context)
    assert here.text == there.text == same.text
    assert here.probabilities == pytest.approx(same.probabilities, rel=1e-4)
    assert there.probabilities == pytest.approx(same.probabilities, rel=1e-4)


def test_a_base_without_a_chat_template_is_named(settings: Settings, tmp_path: Path) -> None:
    model = build("llama", tmp_path / "plain")
    (model / "chat_template.jinja").unlink()
    question = Question("base", "x", LABELS, (Message("user", "x"),))
    with (
        engine_answers(
            settings.model_copy(update={"model": str(model)}), AdapterRegistry(tmp_path), ["base"]
        ) as engine,
        pytest.raises(ConfigError, match="no chat template"),
    ):
        ask(engine, [question])


def test_a_server_that_refuses_is_an_error(server: LiveServer) -> None:
    with (
        ServerAnswers(server.url) as remote,
        pytest.raises(EngineError, match=r"404.*nobody"),
    ):
        ask(remote, [Question("nobody", "x", LABELS)])


def test_no_server_is_an_error() -> None:
    with (
        ServerAnswers("http://127.0.0.1:9") as remote,
        pytest.raises(EngineError, match="does not answer"),
    ):
        ask(remote, [Question("base", "x", LABELS)])


def test_an_unknown_adapter_is_told_before_the_base_is_loaded(
    settings: Settings, registry: AdapterRegistry
) -> None:
    with (
        pytest.raises(AdapterNotFoundError),
        engine_answers(settings, registry, ["nobody"]),
    ):
        pass


def test_two_versions_of_one_name_are_two_models(settings: Settings, tmp_path: Path) -> None:
    spec = base_spec(settings.model)
    pattern = {"q_proj": 4}
    old = register(tmp_path, spec, "news", seed=0, rank_pattern=pattern)
    register(tmp_path, spec, "news", seed=1, rank_pattern=pattern)
    models = [old.reference, "news"]
    with engine_answers(settings, AdapterRegistry(tmp_path), models) as engine:
        first, second = ask(engine, [Question(model, PROMPTS[0], LABELS) for model in models])
    assert first.probabilities != second.probabilities


def test_asking_ends_with_nothing_left_in_the_engine(engine: EngineAnswers) -> None:
    answers = engine.ask([Question("news", prompt, LABELS) for prompt in PROMPTS])
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert engine.stats().num_running == 0
