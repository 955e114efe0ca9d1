"""When an open loop sends its requests: at random, at a rate, whatever the server does meanwhile."""

import numpy as np


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Seconds from the start at which `count` requests are due, the first at 0.

    Gaps are drawn from the exponential distribution with mean 1 / `rate`: arrivals that know nothing of each other.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]
