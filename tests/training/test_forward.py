from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from finlora.config import Quantization
from finlora.datasets.rows import Row
from finlora.model import LoadedBase, load_base
from finlora.training import native_packed_attention, packed_attention
from finlora.training.batches import ExampleEncoder, collate
from finlora.training.config import TrainingConfig
from finlora.training.forward import row_logprobs, target_logprobs
from finlora.training.workshop import attach_layers
from tests.tiny_models import build
from tests.training.rows import make_rows

CPU = torch.device("cpu")


def plain_logprobs(base: LoadedBase, context: list[int], target: list[int]) -> torch.Tensor:
    """The definition: one row, the model's own attention, the whole vocabulary everywhere."""
    base.model.set_attn_implementation("eager")
    ids = torch.tensor([context + target])
    logits: torch.Tensor = base.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    steps = torch.arange(len(context) - 1, ids.shape[1] - 1)
    return logits[steps, ids[0, 1:][steps]]


# Our kernel, where it is compiled, or torch's operations: rows beyond the last number attend by the
# fused ones. A model with a softcap has neither.
@pytest.mark.parametrize(
    ("by_our_kernel", "max_eager_tokens"), [(True, 512), (False, 512), (False, 8)]
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "mistral"])
def test_shared_prefix_padding_and_gathering_change_nothing(
    architecture: str,
    by_our_kernel: bool,
    max_eager_tokens: int,
    tmp_path: Path,
    fast: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_attention, "MAX_EAGER_TOKENS", max_eager_tokens)
    if not by_our_kernel:
        monkeypatch.setattr(native_packed_attention, "can_attend", lambda *_: False)
    folder = build(architecture, tmp_path / architecture, final_logit_softcapping=5.0)
    base = load_base(str(folder), Quantization.NONE, device="cpu", dtype=torch.float32)
    encoder = ExampleEncoder(fast, 2)
    rows = [Row(row.context + "x" * i, row.target) for i, row in enumerate(make_rows()[:5])]
    examples = [encoder.encode(row) for row in rows]
    batch = collate(examples, CPU)
    assert batch.packing.num_shared > 20
    expected = [plain_logprobs(base, e.context, e.target) for e in examples]
    got = target_logprobs(base.model, batch)
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-4, rtol=1e-4)
    sums = torch.stack([row.sum() for row in expected])
    torch.testing.assert_close(row_logprobs(base.model, batch), sums, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_plain_rows(
    load: Callable[..., LoadedBase], fast: PreTrainedTokenizerFast
) -> None:
    base = load(Quantization.NONE)
    layers = attach_layers(base, TrainingConfig(lora_r=2))
    for layer in layers.values():
        torch.nn.init.normal_(layer.b, std=0.1)
    examples = [ExampleEncoder(fast, 2).encode(row) for row in make_rows()[:4]]

    target_logprobs(base.model, collate(examples, CPU)).sum().backward()
    got = [layer.a.grad for layer in layers.values()]
    for layer in layers.values():
        layer.a.grad = None
    sum(plain_logprobs(base, e.context, e.target).sum() for e in examples).backward()  # type: ignore[union-attr]
    for layer, gradient in zip(layers.values(), got, strict=True):
        torch.testing.assert_close(gradient, layer.a.grad, atol=1e-3, rtol=1e-3)


def test_the_head_is_left_as_it_was(
    load: Callable[..., LoadedBase], fast: PreTrainedTokenizerFast
) -> None:
    base = load(Quantization.NONE)
    examples = [ExampleEncoder(fast, 2).encode(row) for row in make_rows()[:2]]
    row_logprobs(base.model, collate(examples, CPU))
    logits = base.model(input_ids=torch.ones(2, 3, dtype=torch.long)).logits
    assert logits.shape[:2] == (2, 3)
