from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from finlora.config import Quantization
from finlora.model import LoadedBase, load_base
from finlora.training.batches import Batch, ExampleEncoder, collate
from finlora.training.block import PackedBlock, gives_wanted, pack_blocks
from finlora.training.config import TrainingConfig
from finlora.training.forward import target_logprobs
from finlora.training.fused import fuse
from finlora.training.trainer import checkpointed_blocks
from finlora.training.workshop import attach_layers
from tests.tiny_models import build
from tests.training.rows import make_rows

CPU = torch.device("cpu")


@pytest.fixture
def batch(fast: PreTrainedTokenizerFast) -> Batch:
    return collate([ExampleEncoder(fast, 2).encode(row) for row in make_rows()[:4]], CPU)


def _loaded(folder: Path, *, packed: bool, **fields: Any) -> tuple[LoadedBase, list[Tensor]]:
    """A base and what learns in it, the same in every call."""
    base = load_base(str(folder), Quantization.NONE, device="cpu", dtype=torch.float32)
    if packed:
        fuse(base.model)
        pack_blocks(base.model)
    layers = attach_layers(base, TrainingConfig(lora_r=2, **fields))
    torch.manual_seed(1)
    for layer in layers.values():
        torch.nn.init.normal_(layer.b, std=0.1)
        layer.train()
    return base, [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]


def _gradients(base: LoadedBase, learned: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
    torch.manual_seed(2)  # of the dropout
    logprobs = target_logprobs(base.model, batch)
    return logprobs, *torch.autograd.grad(logprobs.sum(), learned)


# Mistral's window is shorter than the rows; Qwen2's layers have biases.
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_values_and_gradients_are_the_librarys(
    architecture: str, batch: Batch, tmp_path: Path
) -> None:
    folder = build(architecture, tmp_path)
    expected = _gradients(*_loaded(folder, packed=False), batch)
    base, learned = _loaded(folder, packed=True)
    assert gives_wanted(base.model)
    torch.testing.assert_close(_gradients(base, learned, batch), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"lora_target_modules": ["k_proj", "up_proj"], "peft_use_dora": True},
    ],
    ids=["some layers", "dora"],
)
def test_every_kind_of_layer_may_be_in_it(
    fields: dict[str, Any], batch: Batch, base_folder: Path
) -> None:
    expected = _gradients(*_loaded(base_folder, packed=False, **fields), batch)
    got = _gradients(*_loaded(base_folder, packed=True, **fields), batch)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_layers_with_dropout_compute_themselves(batch: Batch, base_folder: Path) -> None:
    base, learned = _loaded(base_folder, packed=True, lora_dropout=0.3)
    called = _calls(base)
    first, again = (_gradients(base, learned, batch) for _ in range(2))
    assert called == 2 * list(base.spec.linear_layers)
    torch.testing.assert_close(first, again, atol=0, rtol=0)


def _calls(base: LoadedBase) -> list[str]:
    """Names of linear layers, as they are called from now on."""
    called: list[str] = []
    for name in base.spec.linear_layers:
        layer = base.model.get_submodule(name)
        layer.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    return called


def test_activations_may_be_computed_again(batch: Batch, base_folder: Path) -> None:
    base, learned = _loaded(base_folder, packed=True)
    expected = _gradients(base, learned, batch)
    blocks = checkpointed_blocks(base.model)
    assert all(type(block) is PackedBlock for block in blocks)
    for block in blocks:
        block.training = True
    torch.testing.assert_close(_gradients(base, learned, batch), expected, atol=0, rtol=0)


def test_rows_that_are_not_packed_take_the_blocks_own_way(base_folder: Path) -> None:
    ids = torch.tensor([[5, 9, 200, 31, 77]])
    plain, _ = _loaded(base_folder, packed=False)
    base, _ = _loaded(base_folder, packed=True)
    called = _calls(base)
    expected = plain.model(input_ids=ids).logits
    torch.testing.assert_close(base.model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert called == list(base.spec.linear_layers)


# Qwen3 normalises heads, Gemma's norms and gate are others.
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_other_blocks_stay(architecture: str, tmp_path: Path) -> None:
    base, _ = _loaded(build(architecture, tmp_path), packed=True)
    assert not any(isinstance(module, PackedBlock) for module in base.model.modules())
    assert not gives_wanted(base.model)
