"""Whether the trainer's own forward pass picks the labels that the server picks."""

from collections.abc import Sequence
from pathlib import Path

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.evaluation.test_sets import TestSet
from finlora.quality.arms import Recipe
from finlora.quality.plan import Plan
from finlora.training.batches import Example, by_length, collate
from finlora.training.forward import row_logprobs
from finlora.training.preparation import load_dataset
from finlora.training.restore import load_weights
from finlora.training.workshop import Workshop, prepare

BATCH_SIZE = 32
MAX_ROWS = 200


def trainers_labels(
    plan: Plan,
    recipe: Recipe,
    seed: int,
    adapter: Adapter,
    registry: AdapterRegistry,
    test_set: TestSet,
    held_out: list[str],
) -> list[str]:
    """For the first rows of a test set, the label that the model in training finds likeliest."""
    config = plan.training_config(recipe, seed, held_out)
    dataset = load_dataset(config, Path())
    workshop = prepare(config, dataset.split, registry, device=plan.device)
    load_weights(workshop.layers, adapter.config, registry.read(adapter), workshop.base.spec)
    for layer in workshop.layers.values():
        layer.eval()
    return _choose(workshop, test_set)


def _choose(workshop: Workshop, test_set: TestSet) -> list[str]:
    labels = test_set.labels
    targets = [workshop.encoder.encode_target(label) for label in labels]
    contexts = [workshop.encoder.encode(row).context for row in test_set.rows[:MAX_ROWS]]
    choices = [Example(context, target) for context in contexts for target in targets]
    logprobs = _logprobs(workshop, choices)
    size = len(labels)
    rows = (logprobs[i : i + size] for i in range(0, len(logprobs), size))
    return [labels[row.index(max(row))] for row in rows]


def _logprobs(workshop: Workshop, examples: Sequence[Example]) -> list[float]:
    found = [0.0] * len(examples)
    model = workshop.base.model
    for indices in by_length(examples, BATCH_SIZE):
        batch = collate([examples[i] for i in indices], model.device)
        for i, value in zip(indices, row_logprobs(model, batch).tolist(), strict=True):
            found[i] = value
    return found
