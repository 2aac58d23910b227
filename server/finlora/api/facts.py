"""What this process is, for the metrics: versions, the base, the settings that bound its work."""

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

import finlora
from finlora.config import Settings

if TYPE_CHECKING:
    from finlora.engine.llm_engine import LLMEngine

LIBRARIES = ("bitsandbytes", "torch", "transformers")
LIMITS = (
    "max_num_seqs",
    "max_num_waiting",
    "max_num_batched_tokens",
    "max_loras",
    "max_lora_rank",
    "adapter_cache_bytes",
)


def build_facts() -> dict[str, str]:
    """Versions of the server and of what it computes with."""
    own = {"version": finlora.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def model_facts(engine: "LLMEngine", settings: Settings) -> dict[str, str]:
    """The base and how it is held."""
    return {
        "name": engine.spec.name,
        "fingerprint": engine.spec.fingerprint,
        "quantization": settings.quantization.value,
        "device": settings.device,
        "max_model_len": str(engine.max_model_len),
    }


def limits(settings: Settings) -> dict[str, int]:
    """Settings that bound the work, by name."""
    return {name: getattr(settings, name) for name in LIMITS}
