"""One rate tried: a warm-up, a window in which everything counts, and the verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finlora.bench.statistics import percentile
from loadtest.capacity.arrivals import arrivals
from loadtest.capacity.open_loop import OpenLoop, Outcome
from loadtest.capacity.quantiles import Quantile, quantile
from loadtest.client_cost import ClientCost, CostMeter

P95 = 0.95


@dataclass(frozen=True)
class Timing:
    """How long a step takes. A low rate gets a longer window, for its requests are few."""

    warm_up_seconds: float = 4.0
    window_seconds: float = 20.0
    min_requests: int = 100
    max_stretch: float = 2.0
    patience_seconds: float = 30.0

    def window(self, rate: float) -> float:
        """Seconds in which requests count, at this rate."""
        longest = self.max_stretch * self.window_seconds
        return min(max(self.window_seconds, self.min_requests / rate), longest)


@dataclass(frozen=True, slots=True)
class Step:
    """What happened at one rate. Seconds; infinite where answers are missing."""

    rate: float
    seed: int
    window_seconds: float
    requests: int
    errors: dict[str, int]
    first_token_p50: float
    first_token_p95: Quantile
    first_token_p99: float
    end_p50: float
    end_p95: float
    end_p99: float
    late_p99: float  # the client's own lateness
    client: ClientCost
    holds: bool
    # Whether the whole interval of the p95 lies on the side of the verdict.
    clear: bool


async def measure(
    loop: OpenLoop, rate: float, *, timing: Timing, objective_seconds: float, seed: int
) -> Step:
    """Offer `rate` requests per second; it holds if p95 to the first token is within the objective.

    A request that failed has taken for ever, so more than one in twenty of them fail the step too.
    """
    window = timing.window(rate)
    dues = arrivals(rate, timing.warm_up_seconds + window, seed)
    meter = CostMeter()
    outcomes = await loop.run(dues, timing.patience_seconds)
    counted = [outcome for outcome in outcomes if outcome.due >= timing.warm_up_seconds]
    return _step(counted, meter.read(), rate, seed, window, objective_seconds)


def smallest_visible_overload(timing: Timing, objective_seconds: float) -> float:
    """The share by which a rate may exceed what the server can do without p95 showing it.

    At a share o above it, the queue makes a request that is due at time t wait o t; the request
    that decides is due when 95 % of the window is over.
    """
    return objective_seconds / (timing.warm_up_seconds + P95 * timing.window_seconds)


def _step(
    outcomes: Sequence[Outcome],
    client: ClientCost,
    rate: float,
    seed: int,
    window: float,
    objective_seconds: float,
) -> Step:
    first = [outcome.first_token for outcome in outcomes]
    end = [outcome.end for outcome in outcomes]
    p95 = quantile(first, P95)
    holds = p95.value <= objective_seconds
    return Step(
        rate=rate,
        seed=seed,
        window_seconds=window,
        requests=len(outcomes),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        first_token_p50=percentile(first, 0.5),
        first_token_p95=p95,
        first_token_p99=percentile(first, 0.99),
        end_p50=percentile(end, 0.5),
        end_p95=percentile(end, P95),
        end_p99=percentile(end, 0.99),
        late_p99=percentile([outcome.late_by for outcome in outcomes], 0.99),
        client=client,
        holds=holds,
        clear=p95.high <= objective_seconds if holds else p95.low > objective_seconds,
    )
