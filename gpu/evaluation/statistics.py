"""Intervals and tests for counts, exact where they can be; pure Python, for pages too."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The two-sided 95 % point of the normal distribution."""


def wilson_interval(wins: int, trials: int, *, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927, JASA 22:209, eq. for the score interval); right at few trials and at 0 and 1, unlike p ± z·s.

    Raises:
        ValueError: no trials, or more wins than trials.
    """
    if not 0 <= wins <= trials or trials == 0:
        raise ValueError(f"{wins} wins of {trials} trials")
    share = wins / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def binomial_p(wins: int, trials: int) -> float:
    """How probable a result at least so lopsided is when both are equally good: exact, two-sided; 1 without trials."""
    if not 0 <= wins <= trials:
        raise ValueError(f"{wins} wins of {trials} trials")
    fewer = min(wins, trials - wins)
    if 2 * fewer == trials:
        return 1.0
    # Symmetric about one half, so both tails weigh the same.
    return min(1.0, 2 * sum(math.comb(trials, count) for count in range(fewer + 1)) / 2**trials)
