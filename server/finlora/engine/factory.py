"""Puts an engine together: base, cache, slots, warm-up, and the check that it computes right."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from finlora.adapters.cache import AdapterCache
from finlora.adapters.registry import AdapterRegistry
from finlora.chat_template import ChatTemplate
from finlora.config import Settings
from finlora.engine import siblings, unpacked_layers
from finlora.engine.adapter_log import LoggedAdapters
from finlora.engine.compiled_modules import compile_modules
from finlora.engine.golden import GoldenCheck
from finlora.engine.kv_cache import KVCache, KVLayout
from finlora.engine.llm_engine import EngineParts, LLMEngine
from finlora.engine.lora import LoRALinear, LoRASlots
from finlora.engine.lora_loader import LoRALoader, squared_row_norms
from finlora.engine.lora_weights import AdapterWeights
from finlora.engine.memory import KVMemory
from finlora.engine.model_runner import ModelRunner
from finlora.engine.output_layer import replace_output_layer
from finlora.engine.packed_linear import packed_layers, replace_packed_layers
from finlora.engine.prefix_cache import PrefixCache
from finlora.engine.scheduler import Scheduler
from finlora.engine.siblings import LayerGroup, group_layers
from finlora.engine.unpacked_layers import replace_unpacked_layers
from finlora.engine.wide import StepRows, widen_output_layer
from finlora.metrics import Metrics
from finlora.model import LoadedBase, load_base, memory_bytes, pack
from finlora.threads import set_threads

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 4096
# Rows of logits that one step may make for log-probabilities of prompts: 100 MB at a vocabulary
# of 50,000 in float32.
MAX_LOGITS_ROWS = 512


def build_engine(
    settings: Settings,
    registry: AdapterRegistry,
    metrics: Metrics,
    *,
    report: Callable[[str], None] = logger.info,
) -> LLMEngine:
    """Load the base and warm it up, in this thread (trap: packing is not thread-safe).

    `report` is told each phase. Raises BaseModelError, ConfigError.
    """
    set_threads(settings.threads)
    report(f"loading {settings.model} ({settings.quantization})")
    base = load_base(settings.model, settings.quantization, device=settings.device)
    engine = assemble(base, settings, registry, metrics, report=report)
    report("ready")
    return engine


def assemble(
    base: LoadedBase,
    settings: Settings,
    registry: AdapterRegistry,
    metrics: Metrics,
    *,
    report: Callable[[str], None] = logger.info,
) -> LLMEngine:
    """An engine around a freshly loaded base; takes the base over."""
    golden = GoldenCheck.record(base.model, base.spec)
    with torch.inference_mode():
        row_norms = squared_row_norms(base.model, list(base.spec.linear_layers))
    report("packing and warming up")
    base_bytes = _replace_modules(base.model)
    groups = group_layers(base.spec.linear_layers)
    kv_cache = _kv_cache(base, settings)
    memory = KVMemory(kv_cache, PrefixCache() if settings.prefix_cache else None)
    slots = _slots(base, groups, settings)
    members = siblings.install(base.model, groups, partial(_adapt, slots, settings.max_loras))
    rows = StepRows()
    if settings.wide_copies:
        base_bytes["wide"] = _widen(base.model, rows, report)
    loader = LoRALoader(
        registry.read,
        base.spec,
        members,
        row_norms,
        max_rank=settings.max_lora_rank,
        dtype=base.compute_dtype,
    )
    adapters = _adapter_cache(loader, slots, settings, metrics)
    engine = LLMEngine(
        EngineParts(
            runner=ModelRunner(base.model, kv_cache, slots, rows),
            scheduler=_scheduler(memory, adapters, settings),
            memory=memory,
            adapters=adapters,
            tokenizer=base.tokenizer.backend_tokenizer,
            chat_template=ChatTemplate.of(base.tokenizer),
            spec=base.spec,
            metrics=metrics,
            base_bytes=base_bytes,
            slots=slots,
        )
    )
    golden.verify(engine)
    return engine


def _replace_modules(model: PreTrainedModel) -> dict[str, int]:
    """Put what is fastest here in place of the model's own; the bytes of its parts then."""
    num_bytes = memory_bytes(model)
    num_bytes["scales"] += replace_unpacked_layers(model)
    num_bytes["scales"] -= memory_bytes(model)["scales"]
    pack(model)
    num_bytes["scales"] += memory_bytes(model)["scales"]
    replace_packed_layers(model)
    num_bytes["embeddings"] -= replace_output_layer(model)
    compile_modules(model)
    return num_bytes


def _slots(base: LoadedBase, groups: list[LayerGroup], settings: Settings) -> LoRASlots:
    return LoRASlots(
        groups,
        max_loras=settings.max_loras,
        max_rank=settings.max_lora_rank,
        dtype=base.compute_dtype,
        device=str(base.device),
    )


def _adapter_cache(
    loader: LoRALoader, slots: LoRASlots, settings: Settings, metrics: Metrics
) -> AdapterCache[AdapterWeights]:
    return AdapterCache(
        loader,
        slots,
        max_loras=settings.max_loras,
        max_bytes=settings.adapter_cache_bytes,
        observer=LoggedAdapters(metrics),
    )


def _scheduler(
    memory: KVMemory, adapters: AdapterCache[AdapterWeights], settings: Settings
) -> Scheduler:
    return Scheduler(
        memory,
        adapters,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_logits_rows=MAX_LOGITS_ROWS,
    )


def _adapt(slots: LoRASlots, max_loras: int, layer: nn.Module, group: LayerGroup) -> nn.Module:
    return LoRALinear(layer, slots, group) if max_loras else layer


def _widen(model: PreTrainedModel, rows: StepRows, report: Callable[[str], None]) -> int:
    """Copies of the layers, for prompts, and of the output layer, where they help; their bytes."""
    with torch.inference_mode():
        num_bytes = sum(layer.widen(rows) for layer in packed_layers(model))
        num_bytes += unpacked_layers.widen(model, rows)
        num_bytes += widen_output_layer(model)
    report(f"keeps wide copies: {num_bytes / 2**20:.0f} MiB")
    return num_bytes


def _kv_cache(base: LoadedBase, settings: Settings) -> KVCache:
    own = base.spec.max_position_embeddings
    max_model_len = settings.max_model_len or min(own, DEFAULT_MAX_MODEL_LEN)
    if max_model_len > own:
        logger.warning("max_model_len=%d is more than the %d of the base", max_model_len, own)
    return KVCache(
        _kv_layout(base.model, base.compute_dtype),
        num_bytes=settings.kv_cache_bytes,
        max_num_seqs=settings.max_num_seqs,
        max_model_len=max_model_len,
        device=base.device,
    )


def _kv_layout(model: PreTrainedModel, dtype: torch.dtype) -> KVLayout:
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    return KVLayout(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        dtype=dtype,
    )
