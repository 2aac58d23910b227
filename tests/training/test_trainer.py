from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score
from transformers import PreTrainedTokenizerFast

from finlora.config import Quantization
from finlora.errors import ConfigError
from finlora.model import LoadedBase
from finlora.training.batches import Example, ExampleEncoder, collate
from finlora.training.config import TrainingConfig
from finlora.training.estimates import activation_bytes
from finlora.training.eva import start_from_activations
from finlora.training.evaluation import Evaluation, ValidationRows
from finlora.training.forward import row_logprobs
from finlora.training.four_bit_base import exchange_four_bit_layers, widen
from finlora.training.lora_layer import TrainableLoRA
from finlora.training.optimization import rate_factor
from finlora.training.trainer import Step, Trainer, TrainingDivergedError
from finlora.training.workshop import attach_layers
from tests.training.rows import LABELS, make_rows

RECIPE: dict[str, Any] = {
    "lora_r": 4,
    "lora_alpha": 8,
    "learning_rate": 0.005,
    "num_epochs": 3,
    "batch_size": 6,
}
# Of RECIPE on the tiny Llama, at every third step. They change when the recipe's meaning does.
LOSSES = [7.4747, 6.826, 4.7186, 3.3114, 2.6063, 2.3278]


@pytest.fixture
def examples(fast: PreTrainedTokenizerFast) -> list[Example]:
    return [ExampleEncoder(fast, 2).encode(row) for row in make_rows()]


def fit(
    base: LoadedBase, examples: list[Example], **fields: Any
) -> tuple[list[Step], dict[str, TrainableLoRA]]:
    config = TrainingConfig(**(RECIPE | fields))
    layers = attach_layers(base, config)
    trainer = Trainer(base.model, layers, config)
    return trainer.fit(lambda _: examples, on_step=lambda _: None).steps, layers


@pytest.mark.parametrize("exchange", [widen, exchange_four_bit_layers])
def test_recipe(
    exchange: Callable[..., Any], load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load(Quantization.NF4)
    exchange(base.model, torch.float32)
    steps, _ = fit(base, examples)
    assert len(steps) == 18
    assert [step.loss for step in steps[::3]] == pytest.approx(LOSSES, rel=2e-3)


@pytest.mark.parametrize("exchange", [widen, exchange_four_bit_layers])
@pytest.mark.parametrize(
    "fields", [{}, {"peft_use_dora": True}, {"lora_target_modules": ["v_proj"]}]
)
def test_exchanged_layers_train_as_four_bit_layers_do(
    fields: dict[str, Any],
    exchange: Callable[..., Any],
    load: Callable[..., LoadedBase],
    examples: list[Example],
) -> None:
    exchanged = load()
    exchange(exchanged.model, torch.float32)
    losses = [step.loss for step in fit(exchanged, examples, num_epochs=1, **fields)[0]]
    plain = [step.loss for step in fit(load(), examples, num_epochs=1, **fields)[0]]
    assert plain == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("fields", [{}, {"peft_use_dora": True}, {"lora_dropout": 0.1}])
def test_every_layer_learns_also_after_an_evaluation(
    fields: dict[str, Any], load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    # In bfloat16 and eval mode a four-bit layer would change to its packed format, which passes
    # no gradient on.
    base = load(dtype=torch.bfloat16)
    config = TrainingConfig(**(RECIPE | fields))
    layers = attach_layers(base, config)
    Trainer(base.model, layers, config).fit(lambda _: examples, on_step=lambda _: None)
    row_logprobs(base.model, collate(examples[:4], base.device))
    before = {name: _copies(layer) for name, layer in layers.items()}
    Trainer(base.model, layers, config).fit(lambda _: examples, on_step=lambda _: None)
    for name, layer in layers.items():
        for part, tensor in layer.tensors().items():
            assert not torch.equal(before[name][part], tensor), f"{name}.{part}"


def test_accumulation_weighs_tokens_not_batches(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    # One batch of four, or four of one: answers of different length weigh by their tokens.
    few = [Example(e.context, e.target * (1 + i)) for i, e in enumerate(examples[:4])]
    whole, _ = fit(load(), few, batch_size=4, num_epochs=2)
    parts, _ = fit(load(), few, batch_size=1, gradient_accumulation_steps=4, num_epochs=2)
    assert len(whole) == len(parts) == 2
    assert [s.loss for s in parts] == pytest.approx([s.loss for s in whole], rel=1e-4)
    assert [s.grad_norm for s in parts] == pytest.approx([s.grad_norm for s in whole], rel=1e-3)


def prepared(base: LoadedBase) -> tuple[Trainer, list[TrainableLoRA]]:
    """A trainer of the recipe, and its layers in their order."""
    config = TrainingConfig(**RECIPE)
    layers = attach_layers(base, config)
    return Trainer(base.model, layers, config), list(layers.values())


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    trainer, (first, *others) = prepared(load())
    with torch.no_grad():
        first.b.fill_(torch.nan)
    before = [_copies(layer) for layer in others]
    with pytest.raises(TrainingDivergedError, match="step 1"):
        trainer.fit(lambda _: examples, on_step=lambda _: None)
    for layer, kept in zip(others, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in layer.tensors().items())


def test_a_gradient_that_is_no_number_stops_the_run_although_the_loss_is_one(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    trainer, layers = prepared(load())
    layers[0].b.register_hook(lambda gradient: gradient * torch.inf)
    before = [_copies(layer) for layer in layers]
    with pytest.raises(TrainingDivergedError, match=r"the gradient's norm is (nan|inf) in step 1"):
        trainer.fit(lambda _: examples, on_step=lambda _: None)
    for layer, kept in zip(layers, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in layer.tensors().items())
    assert trainer.history.steps == []


def test_a_run_is_reproducible(load: Callable[..., LoadedBase], examples: list[Example]) -> None:
    first = [s.loss for s in fit(load(), examples, num_epochs=1)[0]]
    assert [s.loss for s in fit(load(), examples, num_epochs=1)[0]] == first
    assert [s.loss for s in fit(load(), examples, num_epochs=1, seed=1)[0]] != first


def test_the_base_does_not_change(load: Callable[..., LoadedBase], examples: list[Example]) -> None:
    base = load()
    before = {k: v.clone() for k, v in base.model.named_parameters()}
    fit(base, examples, num_epochs=1)
    after = {k.replace(".base.", "."): v for k, v in base.model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("scheduler", "factors"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_schedule(scheduler: str, factors: list[float]) -> None:
    config = TrainingConfig(lr_scheduler=scheduler, warmup=0.25)  # type: ignore[arg-type]
    assert [rate_factor(config, step, 6) for step in range(1, 7)] == pytest.approx(factors)


def test_the_best_version_is_kept_and_training_stops_when_none_is_better(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    config = TrainingConfig(**RECIPE | {"num_epochs": 9, "early_stopping": 2, "eval_steps": 2})
    base = load()
    layers = attach_layers(base, config)
    losses = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def evaluate(step: int) -> Evaluation:
        assert not any(layer.training for layer in layers.values())
        seen[step] = {name: layer.b.detach().clone() for name, layer in layers.items()}
        return Evaluation(step, next(losses))

    trainer = Trainer(base.model, layers, config)
    history = trainer.fit(lambda _: examples, on_step=lambda _: None, evaluate=evaluate)
    assert [found.step for found in history.evaluations] == [2, 4, 6, 8]
    assert len(history.steps) == 8
    assert (best := history.best("loss")) is not None
    assert best.step == 4
    for name, layer in layers.items():
        assert torch.equal(layer.b, seen[4][name])
        assert not torch.equal(layer.b, seen[8][name])


def test_without_an_interval_every_epochs_end_is_evaluated(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load()
    config = TrainingConfig(**RECIPE)
    rows = ValidationRows(examples[:6], [], [])
    history = Trainer(base.model, attach_layers(base, config), config).fit(
        lambda _: examples,
        on_step=lambda _: None,
        evaluate=lambda step: rows.evaluate(base.model, step),
    )
    assert [found.step for found in history.evaluations] == [6, 12, 18]
    assert history.evaluations[-1].loss < history.evaluations[0].loss
    assert history.evaluations[0].accuracy is None


def test_an_evaluation_scores_as_the_definition_says(
    load: Callable[..., LoadedBase], fast: PreTrainedTokenizerFast
) -> None:
    base = load()
    encoder = ExampleEncoder(fast, 2)
    rows = make_rows()[:9]
    examples = [encoder.encode(row) for row in rows]
    targets = [encoder.encode_target(label) for label in LABELS]
    found = ValidationRows(examples, LABELS, targets).evaluate(base.model, 1)
    chosen, loss = [], 0.0
    for example in examples:
        logprobs = [
            row_logprobs(base.model, collate([Example(example.context, t)], base.device)).item()
            for t in targets
        ]
        chosen.append(LABELS[logprobs.index(max(logprobs))])
        loss -= logprobs[targets.index(example.target)]
    assert found.accuracy == accuracy_score([row.target for row in rows], chosen)
    assert found.loss == pytest.approx(loss / sum(len(e.target) for e in examples), rel=1e-3)


@pytest.mark.parametrize("fields", [{}, {"lora_dropout": 0.2}, {"peft_use_dora": True}])
def test_gradient_checkpointing_changes_no_loss(
    fields: dict[str, Any], load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    config = TrainingConfig(**RECIPE | fields | {"num_epochs": 1})

    def losses(checkpointing: bool) -> list[float]:
        base = load()
        layers = attach_layers(base, config)
        trainer = Trainer(base.model, layers, config, checkpointing=checkpointing)
        return [s.loss for s in trainer.fit(lambda _: examples, on_step=lambda _: None).steps]

    # Dropout draws differ: with checkpointing the shared prefix is computed once a row.
    rel = 0.1 if config.lora_dropout else 1e-3
    assert losses(True) == pytest.approx(losses(False), rel=rel)


def test_gradient_checkpointing_keeps_less(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load()
    config = TrainingConfig(**RECIPE)
    layers = attach_layers(base, config)
    whole = activation_bytes(base.model, examples[0])
    trainer = Trainer(base.model, layers, config, checkpointing=True)

    def measure(_: Step) -> None:
        raise _Measured(activation_bytes(base.model, examples[0]))

    with pytest.raises(_Measured) as measured:
        trainer.fit(lambda _: examples, on_step=measure)
    assert measured.value.num_bytes < whole / 2


class _Measured(Exception):
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


def test_weights_of_rows_are_weights_in_the_loss(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    few = examples[:4]
    twice = [replace(few[0], weight=2.0), *few[1:]]
    expected, _ = fit(load(), [few[0], *few], batch_size=5, num_epochs=1)
    weighted, _ = fit(load(), twice, batch_size=4, num_epochs=1)
    assert weighted[0].loss == pytest.approx(expected[0].loss, rel=1e-4)
    assert weighted[0].grad_norm == pytest.approx(expected[0].grad_norm, rel=1e-3)


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "eva"])
def test_every_start_leaves_the_base_as_it_was_and_learns(
    init: str, load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load()
    ids = torch.tensor([examples[0].context])
    before = base.model(input_ids=ids).logits
    config = TrainingConfig(**RECIPE | {"init_lora_weights": init, "num_epochs": 1})
    layers = attach_layers(base, config)
    if init == "eva":
        start_from_activations(base.model, layers, examples)
    torch.testing.assert_close(base.model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)
    steps = (
        Trainer(base.model, layers, config).fit(lambda _: examples, on_step=lambda _: None).steps
    )
    assert steps[-1].loss < steps[0].loss


def test_eva_refuses_a_rank_above_a_layers_inputs(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load()
    layers = attach_layers(base, TrainingConfig(lora_r=65))
    with pytest.raises(ConfigError, match="lora_r=65 is above the 64 inputs of"):
        start_from_activations(base.model, layers, examples)


def test_eva_starts_from_the_directions_of_scikit_learns_pca(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load(Quantization.NONE)
    layers = attach_layers(base, TrainingConfig(lora_r=4))
    start_from_activations(base.model, layers, examples)
    name = "model.layers.1.mlp.down_proj"
    inputs: list[torch.Tensor] = []
    hook = layers[name].register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    for example in examples:
        base.model(input_ids=torch.tensor([example.context + example.target]))
    hook.remove()
    expected = PCA(4).fit(torch.cat(inputs).detach().numpy()).components_
    # The spaces are compared: directions of like strength may turn within them.
    overlap = (torch.tensor(expected) @ layers[name].a.detach().T).square().sum() / 4
    assert overlap > 0.95
    shared = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
    assert torch.equal(layers[shared[0]].a, layers[shared[1]].a)


def _copies(layer: TrainableLoRA) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in layer.tensors().items()}
