"""The optimizer of a device, and the learning rate of a step."""

import math

import torch

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
