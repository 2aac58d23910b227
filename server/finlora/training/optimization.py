"""The optimizer of a device, and the learning rate of a step."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from finlora.training.config import TrainingConfig


def rate_factor(config: TrainingConfig, step: int, num_steps: int) -> float:
    """Share of the learning rate in step 1..num_steps: linear warm-up, then the schedule."""
    num_warmup = math.ceil(config.warmup * num_steps)
    if step <= num_warmup:
        return step / num_warmup
    if config.lr_scheduler == "constant":
        return 1.0
    done = (step - num_warmup - 1) / max(num_steps - num_warmup, 1)
    return 1 - done if config.lr_scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2


def make_optimizer(
    parameters: list[torch.nn.Parameter], config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; on CUDA its state may have 8 bits and be paged, which on a CPU would gain nothing."""
    rate, decay = config.learning_rate, config.weight_decay
    if device.type != "cuda" or config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    paged = config.optimizer == "paged_adamw_8bit"
    optimizer: torch.optim.Optimizer = (PagedAdamW8bit if paged else AdamW8bit)(
        parameters, lr=rate, weight_decay=decay
    )
    return optimizer


def optimizer_note(config: TrainingConfig, device: torch.device) -> str | None:
    """What the user should know when the optimizer is another than the configured one."""
    if device.type == "cuda" or config.optimizer == "adamw":
        return None
    return f"plain AdamW instead of {config.optimizer}: paged and 8-bit state are for CUDA"


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """What it remembers of every parameter, by number: copies, fit for a file."""
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        number: {key: torch.as_tensor(value).clone() for key, value in _flat(entries)}
        for number, entries in states.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, states: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Let it remember what `optimizer_state` gave."""
    # bitsandbytes counts steps in a plain int, torch in a float32 tensor.
    state = {
        number: {k: v.item() if v.dtype is torch.int64 else v for k, v in entries.items()}
        for number, entries in states.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """bitsandbytes hides its 8-bit state in a dictionary, from FSDP; it loads it without one."""
    for key, value in entries.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield key, value
