"""What a run will take, measured on the base itself before it begins."""

import time

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finlora.training.batches import Example, collate, micro_batches, rows_at_once
from finlora.training.forward import target_logprobs


def activation_bytes(model: PreTrainedModel, example: Example) -> int:
    """What the backward pass of one row needs kept; weights are not counted, tensors once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or a freed address could come back for another tensor

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        target_logprobs(model, collate([example], model.device))
    return sum(kept.values())


def largest_activation_bytes(
    model: PreTrainedModel, examples: list[Example], batch_size: int
) -> int:
    """The same for the longest rows that are computed together."""
    longest = max(examples, key=lambda example: example.num_tokens)
    num_rows = min(batch_size, rows_at_once(longest.num_tokens, model.device))
    return activation_bytes(model, longest) * num_rows


def free_bytes(device: torch.device) -> int:
    """Memory that is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def seconds_per_token(model: PreTrainedModel, examples: list[Example]) -> float:
    """Of a forward and a backward pass over a batch, the second of two."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for part in micro_batches(examples, model.device):
            (-target_logprobs(model, collate(part, model.device)).sum()).backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds = time.perf_counter() - started
    for parameter in model.parameters():
        parameter.grad = None
    return seconds / sum(example.num_tokens for example in examples)
