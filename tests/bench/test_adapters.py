from pathlib import Path

import torch
from safetensors.torch import load

from finlora.adapters.registry import AdapterRegistry
from finlora.adapters.validation import parse_weights
from finlora.bench.adapters import random_weights, register_random
from finlora.bench.subject import Subject


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(made: Subject) -> None:
    spec = made.engine.spec
    assert random_weights(spec, 4, seed=1) == random_weights(spec, 4, seed=1)
    first, second = (load(random_weights(spec, 4, seed)) for seed in (1, 2))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_they_pass_the_judgement_that_real_adapters_get(made: Subject, tmp_path: Path) -> None:
    spec, registry = made.engine.spec, AdapterRegistry(tmp_path)
    adapters = list(register_random(registry, spec, count=2, rank=8, first=3))
    assert [adapter.name for adapter in adapters] == ["a3", "a4"]
    for adapter in adapters:
        layers = parse_weights(adapter.config, registry.read(adapter), spec, max_rank=8)
        assert layers.keys() == spec.linear_layers.keys()
        assert {layer.rank for layer in layers.values()} == {8}
