"""95 % intervals of the difference of two candidates on the same items.

Differences are taken item by item, which removes what an item's difficulty does to both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import SMALL, Interval, Z, mean_interval


def difference_interval(differences: NDArray[Any], strata: NDArray[Any]) -> Interval:
    """Return the interval of the mean over items of differences between -1 and 1.

    A percentile bootstrap over items, stratified. Where fewer than 50 items go one way or the
    other, the bootstrap covers too little, and the adjusted Wald interval of paired proportions
    stands in, one more item going each way (D. G. Bonett and R. M. Price 2012, J. Educational and
    Behavioral Statistics 37, 479-488). Differences of shares count by their size; they vary no
    more than the -1, 0 and 1 which it is made for, so it is wide enough, or too wide.

    Args:
        differences: verdicts of one candidate less those of the other, shape `[items]` or
            `[pairs, items]`.
        strata: the benchmark of each item, shape `[items]`, any sortable dtype.

    Raises:
        UserError: a difference is not in [-1, 1], shapes differ, or there are no items.
    """
    if not np.all(np.abs(differences) <= 1):
        raise UserError("a difference of shares must lie between -1 and 1")
    drawn = mean_interval(differences, strata)
    up = np.maximum(differences, 0).sum(axis=-1)
    down = np.maximum(-differences, 0).sum(axis=-1)
    n = strata.size + 2
    middle = (up - down) / n
    half = Z * np.sqrt(((up + down + 2) / n - middle**2) / n)
    few = (up + down < SMALL) | (np.minimum(up, down) == 0)
    low = np.where(few, np.maximum(middle - half, -1.0), drawn.low)
    high = np.where(few, np.minimum(middle + half, 1.0), drawn.high)
    return Interval(low[()], high[()])


def mean_of_estimates(estimates: NDArray[Any], each: Interval) -> Interval:
    """Return the interval of the unweighted mean of independent estimates, such as benchmarks'.

    Their own intervals are combined by the distances of their ends from them (MOVER: Zou and Donner
    2008, Statistics in Medicine 27, 1693-1702).

    Args:
        estimates: shape `[parts]` or `[pairs, parts]`.
        each: their intervals, of that shape; NaN makes the answer NaN.
    """
    count, mean = estimates.shape[-1], estimates.mean(axis=-1)
    # The adjusted interval of a difference may leave its estimate out by a hair.
    below = np.sqrt((np.maximum(estimates - each.low, 0) ** 2).sum(axis=-1)) / count
    above = np.sqrt((np.maximum(each.high - estimates, 0) ** 2).sum(axis=-1)) / count
    return Interval(mean - below, mean + above)
