"""Confidence intervals of shares."""

from __future__ import annotations

import math


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a binomial share, in percent (E. B. Wilson, 1927, eq. 4). `z` is the normal
    quantile: the default gives 95 %. Stays within [0, 100] and is not empty at 0 or n successes."""
    assert 0 <= successes <= n, (successes, n)
    assert n > 0, "no trials, no interval"
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 100 / (1 + z * z / n)
    # At the ends one bound is exactly 0 or 100; rounding must not push it past.
    low = 0.0 if successes == 0 else (centre - half) * scale
    high = 100.0 if successes == n else (centre + half) * scale
    return low, high
