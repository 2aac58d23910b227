"""Log-probabilities of a batch's targets; the vocabulary is computed at their positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from finlora.training.batches import Batch


def target_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N] in float32: log P(target | everything before it in its row)."""
    cache = _run_prefix(model, batch)
    with _head_sees(model, batch.positions):
        output = model(
            input_ids=batch.input_ids, past_key_values=cache, use_cache=cache is not None
        )
    logprobs: Tensor = output.logits.float().log_softmax(-1)
    return logprobs.gather(1, batch.targets[:, None])[:, 0]


def _run_prefix(model: PreTrainedModel, batch: Batch) -> DynamicCache | None:
    """Keys and values of the shared tokens, for every row; gradients flow through them."""
    if not len(batch.prefix):
        return None
    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=batch.prefix[None], past_key_values=cache, use_cache=True)
    num_rows = len(batch.input_ids)
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = layer.keys.expand(num_rows, -1, -1, -1)
        layer.values = layer.values.expand(num_rows, -1, -1, -1)
    return cache


@contextmanager
def _head_sees(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Let the head compute these rows of [B * L] alone, whatever the model does to its logits."""

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (inputs[0].flatten(0, -2)[positions],)

    hook = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def row_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[B]: log-probability of each row's whole target."""
    sums = torch.zeros(len(batch.input_ids), device=batch.input_ids.device)
    return sums.index_add(0, batch.rows, target_logprobs(model, batch))
