"""How fast the answers came. Pure arithmetic."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finlora.evaluation.bootstrap import Estimate, resampled_quantile
from finlora.evaluation.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one outcome. Latency is that of a row among those asked at the same time."""

    seconds: float
    rows_per_second: float
    tokens_per_second: float  # of prompts and answers, shared beginnings counted in full
    num_prompt_tokens: int
    num_output_tokens: int
    latency_p50_seconds: Estimate
    latency_p95_seconds: Estimate

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def speed(outcome: Outcome, *, seed: int = 0) -> Speed:
    """Throughput over the whole set, latency over its rows."""
    num_prompt = sum(reply.num_prompt_tokens for reply in outcome.replies)
    num_output = sum(reply.num_output_tokens for reply in outcome.replies)
    latencies = np.array([reply.seconds for reply in outcome.replies])
    return Speed(
        seconds=outcome.seconds,
        rows_per_second=len(outcome.replies) / outcome.seconds,
        tokens_per_second=(num_prompt + num_output) / outcome.seconds,
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
        latency_p50_seconds=resampled_quantile(latencies, 0.5, seed=seed),
        latency_p95_seconds=resampled_quantile(latencies, 0.95, seed=seed),
    )
