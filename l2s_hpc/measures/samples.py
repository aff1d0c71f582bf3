"""Several samples an item: mean@n, unbiased pass@k, and their 95 % intervals over items.

Items are what is drawn from a population, samples only measure an item more exactly: so intervals
resample items, each with all of its samples, within their benchmark.
"""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import Floats, Interval, rate_interval


def pass_at(counts: NDArray[Any], samples: int, k: int) -> Floats:
    """Return the unbiased estimate of pass@k for each item: one of k samples is right.

    1 - C(n - c, k) / C(n, k) for c right ones of n samples (M. Chen et al. 2021, "Evaluating Large
    Language Models Trained on Code"), computed in integers. At k = 1 it is the share of right
    samples, whose mean over items is mean@n.

    Args:
        counts: right samples of each item, any shape, whole numbers from 0 to `samples`.
        samples: n, how many samples each item has.
        k: how many of them one may look at, from 1 to n.

    Returns:
        Shape of `counts`, each in [0, 1].

    Raises:
        UserError: k or a count is out of its bounds.
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} needs 1 to {samples} samples of each item")
    right = np.asarray(counts)
    if np.any((right < 0) | (right > samples) | (right != np.floor(right))):
        raise UserError(f"a count of right samples is a whole number from 0 to {samples}")
    every = comb(samples, k)
    of_count = np.array([(every - comb(samples - c, k)) / every for c in range(samples + 1)])
    return of_count[right.astype(np.int64)]


def sizes(samples: int) -> tuple[int, ...]:
    """Return the k for which pass@k is told: the powers of two up to n, and n itself."""
    powers = [2**e for e in range(samples.bit_length()) if 2**e <= samples]
    return tuple(dict.fromkeys([*powers, samples]))


def share_interval(values: NDArray[Any], strata: NDArray[Any]) -> Interval:
    """Return the interval of the mean over items of values between 0 and 1: see `rate_interval`.

    Args:
        values: in [0, 1], shape `[items]` or `[candidates, items]`.
        strata: the benchmark of each item, shape `[items]`.

    Raises:
        UserError: a value is not in [0, 1], shapes differ, or there are no items.
    """
    if not np.all((values >= 0) & (values <= 1)):
        raise UserError("a share must lie between 0 and 1")
    return rate_interval(values, np.ones(strata.size), strata)


def macro_share_interval(values: NDArray[Any], strata: NDArray[Any]) -> Interval:
    """Return the interval of the unweighted mean of the benchmarks' mean shares.

    The benchmarks' own intervals are combined by the distances of their ends from their means
    (MOVER: Zou and Donner 2008, Statistics in Medicine 27, 1693-1702).

    Args:
        values: in [0, 1], shape `[items]` or `[candidates, items]`.
        strata: the benchmark of each item, shape `[items]`.

    Raises:
        UserError: as `share_interval`.
    """
    names = np.unique(strata)
    below, above, total = 0.0, 0.0, 0.0
    for name in names:
        part = values[..., strata == name]
        mean, own = part.mean(axis=-1), share_interval(part, strata[strata == name])
        total = total + mean
        below = below + (mean - own.low) ** 2
        above = above + (own.high - mean) ** 2
    macro = total / names.size
    return Interval(macro - np.sqrt(below) / names.size, macro + np.sqrt(above) / names.size)
