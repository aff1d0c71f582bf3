"""Intervals of the median of paired differences, such as tokens saved per problem."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import Interval


def median_interval(values: NDArray[Any]) -> Interval:
    """Return an interval of the median over items that covers at least 95 %, whatever the law.

    Between two order statistics, which the binomial distribution with probability 1/2 names
    (W. R. Thompson 1936, Annals of Mathematical Statistics 7, 122-128). Ties make it cover more;
    below six items it is everything that was seen, and covers less.

    Args:
        values: shape `[items]` or `[candidates, items]`.

    Raises:
        UserError: there are no items, or a value is not finite.
    """
    n = values.shape[-1]
    if n == 0:
        raise UserError("an interval needs at least one item")
    if not np.isfinite(values).all():
        raise UserError("a median needs finite values", hint="name the failed candidates instead")
    ordered, skipped = np.sort(values, axis=-1), _skipped(n)
    return Interval(ordered[..., skipped][()], ordered[..., n - 1 - skipped][()])


@lru_cache(maxsize=256)
def _skipped(n: int) -> int:
    """Return how many values lie outside at each end.

    The k-th smallest is an end for the largest k with P(B < k) <= 2.5 %; in integers, so exact.
    """
    below, term, k = 0, 1, 0
    while 40 * (below + term) <= 2**n:
        below += term
        term = term * (n - k) // (k + 1)
        k += 1
    return max(k - 1, 0)
