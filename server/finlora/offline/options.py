"""How `Engine.generate` draws tokens: the sampling parameters a caller may give."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from finlora.engine.sampling_params import SamplingParams
from finlora.errors import InvalidSamplingParamsError


class SamplingOptions(TypedDict, total=False):
    """Names and types; defaults and bounds are those of SamplingParams."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


def sampling_params(options: SamplingOptions) -> SamplingParams:
    """Raises InvalidSamplingParamsError: an unknown name, or a value out of bounds."""
    unknown = options.keys() - SamplingOptions.__annotations__
    if unknown:
        name = min(unknown)
        raise InvalidSamplingParamsError(f"{name} is no option of generate", param=name)
    given: dict[str, Any] = dict(options)
    stop = given.get("stop", ())
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    given["stop_token_ids"] = tuple(given.get("stop_token_ids", ()))
    given["logit_bias"] = dict(given.get("logit_bias", {}))
    return SamplingParams(**given)
