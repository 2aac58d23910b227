"""What a run would do and take, told without doing it."""

from typing import Any

from finlora.threads import set_threads
from finlora.training.allocator import keep_freed_memory
from finlora.training.estimates import largest_activation_bytes, seconds_per_token
from finlora.training.order import Order
from finlora.training.preparation import load_dataset
from finlora.training.progress import memory_bytes
from finlora.training.run import open_workshop
from finlora.training.workshop import Workshop

OPTIMIZER_BYTES = 8  # a parameter: two moments in float32


def describe(order: Order) -> dict[str, Any]:
    """Configuration, counts, the first row in tokens, memory and time. Raises FinLoRAError."""
    keep_freed_memory()
    set_threads(order.threads)
    dataset = load_dataset(order.config, order.folder)
    workshop = open_workshop(order, dataset)
    first, examples = workshop.examples.whole[0], workshop.examples
    lengths = sorted(example.num_tokens for example in examples.whole)
    return {
        "config": order.config.model_dump(),
        "variant": order.config.variant,
        "labels": dataset.labels,
        "rows_by_label": dataset.label_counts(),
        "num_train_rows": len(lengths),
        "num_valid_rows": len(workshop.valid.whole),
        "num_duplicates_dropped": dataset.split.num_duplicates,
        "num_contradictions": dataset.split.num_contradictions,
        "num_rows_too_long": examples.num_too_long + workshop.valid.num_too_long,
        "num_trainable_parameters": workshop.num_trainable,
        "tokens_per_row": {
            "median": lengths[len(lengths) // 2],
            "percentile_95": lengths[len(lengths) * 95 // 100],
            "longest": lengths[-1],
        },
        "tokens_in_all": sum(lengths) * order.config.num_epochs,
        "estimate": _estimate(order, workshop, sum(lengths)),
        "first_row": {
            "context": examples.rows[0].context,
            "context_token_ids": first.context,
            "context_tokens": workshop.base.tokenizer.convert_ids_to_tokens(first.context),
            "target_token_ids": first.target,
        },
    }


def _estimate(order: Order, workshop: Workshop, tokens_per_epoch: int) -> dict[str, Any]:
    """Measured on the base: what one batch takes, times how often it is done."""
    config, model = order.config, workshop.base.model
    by_length = sorted(workshop.examples.whole, key=lambda example: example.num_tokens)
    middle = max(0, (len(by_length) - config.batch_size) // 2)
    seconds = seconds_per_token(model, by_length[middle : middle + config.batch_size])
    activations = largest_activation_bytes(model, by_length, config.batch_size)
    return {
        "memory_bytes_without_activations": memory_bytes()
        + OPTIMIZER_BYTES * workshop.num_trainable,
        "activation_bytes_of_the_longest_batch": activations,
        "gradient_checkpointing": workshop.checkpointing,
        "tokens_per_second": round(1 / seconds, 1),
        "seconds": round(seconds * tokens_per_epoch * config.num_epochs, 1),
    }
