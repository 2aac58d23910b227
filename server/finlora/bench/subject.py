"""The engine that is measured: its own registry of random adapters, its costs, its driver."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from prometheus_client import CollectorRegistry

from finlora.adapters.adapter import Adapter
from finlora.adapters.registry import AdapterRegistry
from finlora.bench.adapters import register_random
from finlora.bench.driver import Driver
from finlora.bench.roofline import ModelCost
from finlora.config import Settings
from finlora.engine.factory import assemble
from finlora.engine.llm_engine import LLMEngine
from finlora.engine.output_layer import output_layer_bytes
from finlora.metrics import Metrics
from finlora.model import LoadedBase, load_base
from finlora.threads import set_threads


@dataclass(frozen=True, slots=True)
class Subject:
    """One engine and what is known of it."""

    engine: LLMEngine
    driver: Driver
    adapters: list[Adapter]
    cost: ModelCost
    dtype: torch.dtype
    device: torch.device

    @property
    def max_num_slots(self) -> int:
        """Adapters that can be in one batch."""
        return self.engine.adapters.max_loras


@contextmanager
def subject(settings: Settings, *, num_adapters: int = 0, rank: int = 8) -> Iterator[Subject]:
    """An engine with `num_adapters` random adapters in a temporary registry. Raises FinLoRAError.

    At the end nothing may be left running in it (RuntimeError).
    """
    with TemporaryDirectory(prefix="finlora-bench-") as folder:
        registry = AdapterRegistry(Path(folder), who="finlora bench")
        with subject_of(settings, registry) as made:
            spec = made.engine.spec
            made.adapters.extend(register_random(registry, spec, count=num_adapters, rank=rank))
            yield made


@contextmanager
def subject_of(settings: Settings, registry: AdapterRegistry) -> Iterator[Subject]:
    """An engine with the adapters of a registry."""
    set_threads(settings.threads)
    base = load_base(settings.model, settings.quantization, device=settings.device)
    dtype, device = base.compute_dtype, base.device
    sizes = _sizes(base)
    engine = assemble(base, settings, registry, Metrics(CollectorRegistry()), report=lambda _: None)
    cost = _cost(sizes, engine, dtype, output_layer_bytes(base.model))
    gc.freeze()  # as a server does once it is ready
    try:
        yield Subject(engine, Driver(engine), registry.current(), cost, dtype, device)
        engine.check_idle()
    finally:
        gc.unfreeze()
        engine.close()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a model's config says."""

    vocab: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def _sizes(base: LoadedBase) -> _Sizes:
    config = base.model.config.get_text_config()
    num_heads = config.num_attention_heads
    return _Sizes(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
    )


def _cost(sizes: _Sizes, engine: LLMEngine, dtype: torch.dtype, head_bytes: int) -> ModelCost:
    shapes = engine.spec.linear_layers.values()
    linear_parameters = sum(shape.in_features * shape.out_features for shape in shapes)
    held = engine.stats().memory_bytes
    stored = held.get("base_quantized", 0) + held.get("base_scales", 0)
    kv_width = 2 * sizes.num_kv_heads * sizes.head_dim
    return ModelCost(
        linear_parameters=linear_parameters,
        head_parameters=sizes.vocab * sizes.hidden,
        linear_bytes=stored or linear_parameters * dtype.itemsize,
        head_bytes=head_bytes,
        kv_bytes_per_token=sizes.num_layers * kv_width * dtype.itemsize,
        attention_flops_per_pair=4 * sizes.num_layers * sizes.num_heads * sizes.head_dim,
    )
