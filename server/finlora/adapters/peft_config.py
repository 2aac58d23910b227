"""Reads an untrusted adapter_config.json: what is served, what is harmless, what is refused."""

import json
import math
import re
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from finlora.adapters.adapter import LoRAConfig, first_problem
from finlora.errors import AdapterLoadError

MAX_CONFIG_BYTES = 1024 * 1024
MAX_PATTERNS = 2048
MAX_WILDCARD_PATTERNS = 32

SERVED_KEYS = frozenset(LoRAConfig.model_fields)

# Facts about training or about how PEFT finds the layers; the layers are read off the weights.
IGNORED_KEYS = frozenset(
    {
        "base_model_name_or_path",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
    }
)

REFUSED_KEYS = {
    "alora_invocation_tokens": "activated LoRA switches on in the middle of a prompt",
    "arrow_config": "Arrow routes between adapters inside a layer",
    "auto_mapping": "it names a class to import",
    "fan_in_fan_out": "transposed layers are not served",
    "layer_replication": "it changes the layers of the shared base",
    "loftq_config": "LoftQ changes the weights of the shared base",
    "lora_bias": "LoRA biases are not served",
    "megatron_config": "Megatron layers are not served",
    "modules_to_save": "it replaces whole layers of the shared base",
    "target_parameters": "LoRA on bare parameters is not served",
    "trainable_token_indices": "it replaces embeddings of the shared base",
    "use_bdlora": "block-diagonal LoRA is not served",
    "use_qalora": "QA-LoRA pools the inputs of a layer",
}

# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga)
# subtract the starting point from the base weights, so they do not fit a shared base.
HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


def parse_config(content: bytes) -> LoRAConfig:
    """The configuration, when this server can do what it says. Raises AdapterLoadError."""
    config = load_object(content)
    _check_kind(config)
    for key in sorted(config.keys() - SERVED_KEYS - IGNORED_KEYS):
        _check_unused(key, config[key])
    served = {key: config[key] for key in SERVED_KEYS if config.get(key) is not None}
    try:
        parsed = LoRAConfig.model_validate(served)
    except ValidationError as error:
        raise AdapterLoadError(f"adapter_config.json: {first_problem(error)}") from error
    _check_patterns([*parsed.rank_pattern, *parsed.alpha_pattern])
    return parsed


def load_object(content: bytes) -> dict[str, Any]:
    """The JSON object of an adapter_config.json. Raises AdapterLoadError."""
    if len(content) > MAX_CONFIG_BYTES:
        raise AdapterLoadError(f"adapter_config.json is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterLoadError(f"adapter_config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterLoadError("adapter_config.json is not a JSON object")
    return config


def module_rank(config: LoRAConfig, module: str) -> int:
    """The rank of a layer: r, or what the first matching rank_pattern says."""
    key = _pattern_key(config.rank_pattern, module)
    return config.r if key is None else config.rank_pattern[key]


def module_scaling(config: LoRAConfig, module: str) -> float:
    """alpha / r of a layer; with rsLoRA alpha / sqrt(r) (arXiv 2312.03732)."""
    key = _pattern_key(config.alpha_pattern, module)
    alpha = config.lora_alpha if key is None else config.alpha_pattern[key]
    rank = module_rank(config, module)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _check_kind(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterLoadError(f"peft_type is {config.get('peft_type')!r}; only LORA is served")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterLoadError(f"task_type is {config['task_type']!r}; only CAUSAL_LM is served")
    if config.get("bias") not in (None, "none"):
        raise AdapterLoadError(f"bias is {config['bias']!r}; trained biases are not served")
    init = config.get("init_lora_weights")
    if not any(init is harmless or init == harmless for harmless in HARMLESS_INITS):
        raise AdapterLoadError(
            f"init_lora_weights is {init!r}, which changes the weights of the shared base"
        )


def _check_unused(key: str, value: Any) -> None:
    """Accept an unserved key only when it is switched off."""
    if key in ("peft_type", "task_type", "bias", "init_lora_weights"):
        return
    if value is None or value is False or value == {} or value == []:
        return
    reason = REFUSED_KEYS.get(key, "this key is not known here, so its effect would be lost")
    raise AdapterLoadError(f"{key} is set in adapter_config.json: {reason}")


def _check_patterns(patterns: list[str]) -> None:
    """Patterns are regular expressions by strangers: refuse those that could run for ever."""
    wildcards = [pattern for pattern in patterns if re.search(r"[^\w.]", pattern)]
    if len(patterns) > MAX_PATTERNS or len(wildcards) > MAX_WILDCARD_PATTERNS:
        raise AdapterLoadError("rank_pattern and alpha_pattern have too many entries")
    for pattern in wildcards:
        # No groups and at most two repetitions: matching stays polynomial in the name's length.
        plain = re.fullmatch(r"[\w.\\^$|*+?\[\]-]{1,256}", pattern)
        if plain is None or len(re.findall(r"[*+?]", pattern)) > 2:
            raise AdapterLoadError(f"pattern {pattern[:80]!r} is too complex to be matched safely")
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterLoadError(f"pattern {pattern!r} is malformed: {error}") from error


def _pattern_key(patterns: dict[str, Any], module: str) -> str | None:
    """The first pattern that matches the module or a dotted suffix of it, as PEFT looks it up."""
    return next((key for key in patterns if _compiled(key).match(module)), None)


@lru_cache(maxsize=2 * MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")
