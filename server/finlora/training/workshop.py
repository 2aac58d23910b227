"""The base as a run trains it: quantised as configured, with layers around its own that learn."""

from dataclasses import dataclass

from finlora.adapters.compatibility import check_compatible
from finlora.adapters.registry import AdapterRegistry
from finlora.bases.locate import locate
from finlora.bases.spec import BaseSpec
from finlora.bases.tensors import tensor_entries
from finlora.config import Quantization
from finlora.datasets.rows import Split
from finlora.errors import ConfigError
from finlora.model import LoadedBase, load_base
from finlora.training.batches import ExampleEncoder
from finlora.training.block import pack_blocks
from finlora.training.config import ALL_LINEAR, TrainingConfig
from finlora.training.estimates import free_bytes, largest_activation_bytes
from finlora.training.eva import start_from_activations
from finlora.training.four_bit_base import check_double_quantised, exchange_four_bit_layers
from finlora.training.fused import fuse
from finlora.training.lora_layer import LoRASettings, TrainableLoRA, attach
from finlora.training.output_layer import replace_trained_output_layer
from finlora.training.preparation import Examples, answer_weights, encode_rows, eos_token_id
from finlora.training.qera import start_from_error
from finlora.training.restore import load_weights

MAX_ACTIVATIONS_SHARE = 0.6  # of what is free once the base is loaded


@dataclass(frozen=True, slots=True)
class Workshop:
    """A base with trainable layers around its own, and the rows in its tokens."""

    base: LoadedBase
    layers: dict[str, TrainableLoRA]
    encoder: ExampleEncoder
    eos: int
    examples: Examples
    valid: Examples
    initial_adapter: str | None  # the version that the layers start from
    checkpointing: bool  # whether activations are computed again

    @property
    def num_trainable(self) -> int:
        """Parameters that are learned."""
        return sum(
            p.numel()
            for layer in self.layers.values()
            for p in layer.parameters()
            if p.requires_grad
        )


def prepare(
    config: TrainingConfig, split: Split, registry: AdapterRegistry, *, device: str
) -> Workshop:
    """Load the base, check that it is quantised as configured, attach what will be learned."""
    base = load_for_training(config, device=device)
    layers = attach_layers(base, config)
    initial = _start_from(layers, base, config, registry)
    eos = eos_token_id(base.tokenizer, base.spec.eos_token_ids)
    encoder = ExampleEncoder(base.tokenizer, eos)
    max_tokens = min(config.max_seq_len, base.spec.max_position_embeddings)
    weights = answer_weights(split.train, config)
    examples = encode_rows(split.train, encoder, max_tokens, weights)
    valid = encode_rows(split.valid, encoder, max_tokens)
    _start_from_rows(layers, base, config, examples)
    checkpointing = _needs_checkpointing(config, base, examples)
    return Workshop(base, layers, encoder, eos, examples, valid, initial, checkpointing)


def load_for_training(config: TrainingConfig, *, device: str) -> LoadedBase:
    """The base as a run computes with it. Raises BaseModelError unless it is as configured."""
    base = load_base(config.base_reference, config.quantization, device=device, training=True)
    if config.quantization is Quantization.NF4:
        check_double_quantised(base.model)
        exchange_four_bit_layers(base.model, base.compute_dtype)
    replace_trained_output_layer(base.model)
    fuse(base.model)
    pack_blocks(base.model)
    return base


def _needs_checkpointing(config: TrainingConfig, base: LoadedBase, examples: Examples) -> bool:
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing
    needed = largest_activation_bytes(base.model, examples.whole, config.batch_size)
    return needed > MAX_ACTIVATIONS_SHARE * free_bytes(base.device)


def _start_from(
    layers: dict[str, TrainableLoRA],
    base: LoadedBase,
    config: TrainingConfig,
    registry: AdapterRegistry,
) -> str | None:
    if config.initial_adapter is None:
        return None
    adapter = registry.resolve(config.initial_adapter)
    check_compatible(adapter, base.spec, config.quantization, strict=True)
    load_weights(layers, adapter.config, registry.read(adapter), base.spec)
    return adapter.reference


def _start_from_rows(
    layers: dict[str, TrainableLoRA], base: LoadedBase, config: TrainingConfig, examples: Examples
) -> None:
    match config.init_lora_weights:
        case "eva":
            start_from_activations(base.model, layers, examples.whole)
        case "qera":
            entries = tensor_entries(locate(config.base_reference))
            start_from_error(base, layers, entries, examples.whole)


def attach_layers(base: LoadedBase, config: TrainingConfig) -> dict[str, TrainableLoRA]:
    """Put a trainable update around every target layer of the base."""
    names = target_layers(base.spec, config.lora_target_modules)
    return attach(base, names, _settings(config), seed=config.seed)


def target_layers(spec: BaseSpec, targets: list[str] | str) -> list[str]:
    """Layers to adapt, in the base's order. Raises ConfigError for a target that matches none."""
    if targets == ALL_LINEAR:
        return list(spec.linear_layers)
    matched = {t: [n for n in spec.linear_layers if f".{n}".endswith(f".{t}")] for t in targets}
    if missing := [target for target, names in matched.items() if not names]:
        raise ConfigError(f"{spec.name} has no linear layer {missing[0]!r}")
    chosen = {name for names in matched.values() for name in names}
    return [name for name in spec.linear_layers if name in chosen]


def _settings(config: TrainingConfig) -> LoRASettings:
    return LoRASettings(
        rank=config.lora_r,
        alpha=config.lora_alpha,
        use_rslora=config.peft_use_rslora,
        use_dora=config.peft_use_dora,
        dropout=config.lora_dropout,
        init=config.init_lora_weights,
    )
