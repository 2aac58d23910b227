"""Whether what is recorded of an adapter fits the serving base and its limits; reads no weights."""

from finlora.adapters.adapter import Adapter, LoRAConfig, Manifest
from finlora.bases.spec import BaseSpec
from finlora.config import Quantization, Settings
from finlora.errors import AdapterIncompatibleError
from finlora.prompts import PromptTemplate, prompt_format_hash


def check_compatible(
    adapter: Adapter | Manifest, spec: BaseSpec, quantization: Quantization, *, strict: bool
) -> list[str]:
    """Warnings about facts that are unknown or differ harmlessly from the serving base.

    Raises AdapterIncompatibleError for another base or tokenizer, and with `strict` also for
    another or unknown quantisation.
    """
    manifest = adapter.manifest if isinstance(adapter, Adapter) else adapter
    warnings = [
        *_check_identity("base", manifest.base_fingerprint, spec.fingerprint, spec.name),
        *_check_identity("tokenizer", manifest.tokenizer_hash, spec.tokenizer_hash, spec.name),
    ]
    if _prompt_format_changed(manifest):
        warnings.append(
            "trained with another prompt format than this version's: answers may suffer"
        )
    difference = _quantization_difference(manifest, quantization)
    if difference is not None and strict:
        raise AdapterIncompatibleError(difference)
    return warnings if difference is None else [*warnings, difference]


def check_served(adapter: Adapter, spec: BaseSpec, settings: Settings) -> None:
    """Raises AdapterIncompatibleError when a server with these settings refuses the adapter."""
    check_compatible(adapter, spec, settings.quantization, strict=settings.strict)
    check_limits(adapter.config, max_loras=settings.max_loras, max_lora_rank=settings.max_lora_rank)


def check_limits(config: LoRAConfig, *, max_loras: int, max_lora_rank: int) -> None:
    """Raises AdapterIncompatibleError when a server with these limits cannot hold the adapter."""
    if max_loras == 0:
        raise AdapterIncompatibleError("this server runs without adapters: --max-loras is 0")
    # Patterns may speak for all layers, so that r is the rank of none; the load sees that.
    rank = max(config.rank_pattern.values(), default=config.r)
    if rank > max_lora_rank:
        raise AdapterIncompatibleError(
            f"rank {rank} is above this server's --max-lora-rank of {max_lora_rank}"
        )


def _check_identity(what: str, recorded: str | None, actual: str, base: str) -> list[str]:
    if recorded is None:
        return [f"not recorded which {what} the adapter was trained on"]
    if recorded != actual:
        raise AdapterIncompatibleError(
            f"trained on another {what}: {recorded[:12]}, {base} has {actual[:12]}"
        )
    return []


def _prompt_format_changed(manifest: Manifest) -> bool:
    recorded, template = manifest.prompt_format_hash, manifest.prompt_template
    if recorded is None or manifest.eos_token_ids is None:
        return False
    rendered = None if template is None else PromptTemplate(template)
    return recorded != prompt_format_hash(rendered, manifest.eos_token_ids)


def _quantization_difference(manifest: Manifest, serving: Quantization) -> str | None:
    trained = manifest.quantization
    if trained.type == "unknown":
        return "not recorded which quantisation the adapter was trained on"
    if trained.type != serving:
        return f"trained on a {trained.type} base, served on {serving}"
    if serving is Quantization.NF4 and trained.double_quant is False:
        return "trained on nf4 without double quantisation, served with it"
    if serving is Quantization.NF4 and trained.block_size not in (None, 64):
        return f"trained on nf4 with block size {trained.block_size}, served with 64"
    return None
