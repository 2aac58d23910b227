from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from finlora.config import Quantization
from finlora.model import LoadedBase
from finlora.training.batches import Example, ExampleEncoder, collate
from finlora.training.config import TrainingConfig
from finlora.training.forward import row_logprobs
from finlora.training.lora_layer import TrainableLoRA
from finlora.training.optimization import rate_factor
from finlora.training.trainer import Step, Trainer, TrainingDivergedError
from finlora.training.widen import widen
from finlora.training.workshop import attach_layers
from tests.training.rows import make_rows

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


def test_recipe(load: Callable[..., LoadedBase], examples: list[Example]) -> None:
    base = load(Quantization.NF4)
    widen(base.model, torch.float32)
    steps, _ = fit(base, examples)
    assert len(steps) == 18
    assert [step.loss for step in steps[::3]] == pytest.approx(LOSSES, rel=2e-3)


def test_widened_layers_train_as_four_bit_layers_do(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    wide = load()
    assert widen(wide.model, torch.float32)
    losses = [step.loss for step in fit(wide, examples, num_epochs=1)[0]]
    assert [step.loss for step in fit(load(), examples, num_epochs=1)[0]] == pytest.approx(
        losses, rel=1e-3
    )


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


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights(
    load: Callable[..., LoadedBase], examples: list[Example]
) -> None:
    base = load()
    config = TrainingConfig(**RECIPE)
    layers = attach_layers(base, config)
    first = next(iter(layers.values()))
    with torch.no_grad():
        first.b.fill_(torch.nan)
    others = [_copies(layer) for layer in layers.values() if layer is not first]
    with pytest.raises(TrainingDivergedError, match="step 1"):
        Trainer(base.model, layers, config).fit(lambda _: examples, on_step=lambda _: None)
    for layer, before in zip(list(layers.values())[1:], others, strict=True):
        assert all(torch.equal(before[k], v) for k, v in layer.tensors().items())


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


def _copies(layer: TrainableLoRA) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in layer.tensors().items()}
