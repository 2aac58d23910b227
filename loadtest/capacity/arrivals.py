"""When requests arrive in an open loop: at random, and whatever the server does."""

import random


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in [0, seconds) at exactly `rate` per second in the mean, in order.

    A Poisson process of which the number of arrivals is known: given it, the times are independent
    and uniform. So bursts and pauses are those of independent clients, but two seeds never offer
    different loads.
    """
    rng = random.Random(seed)
    return sorted(rng.uniform(0, seconds) for _ in range(round(rate * seconds)))
