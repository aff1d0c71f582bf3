"""Intervals that hold for many figures at once, such as all points of a front.

The chance that *all* true values lie in their intervals is 95 %, where a 95 % interval for each
would miss at least one of ten points far more often.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import SEED, SMALL, Floats, Interval

LEVEL = 0.95
REPLICATES = 1000
RARE = 10  # hits or misses below which resamples without any of them spoil the bootstrap's tail
VAGUE = 0.001  # the share of resamples without spread above which a mean has no interval
HEAVY = 4.0  # so large a 95 % quantile of |t| comes from a few items alone; 2 to 3 is usual
_CHUNK = 250  # resamples in memory at once; divides REPLICATES


def simultaneous(
    numerators: NDArray[Any], denominators: NDArray[Any], strata: NDArray[Any], rates: NDArray[Any]
) -> Interval:
    """Return the simultaneous intervals of figures Σ numerator / Σ denominator over items.

    The estimate plus and minus one common multiple of each figure's standard error. The multiple is
    the 95 % quantile, over resamples of the items within their strata, of the largest distance of
    any figure from its estimate in units of its standard error in that resample: the max-t method
    (P. Westfall and S. Young 1993, Resampling-Based Multiple Testing, ch. 2; as a band with joint
    coverage: J. Montiel Olea and M. Plagborg-Møller 2019, J. Applied Econometrics 34, 1-17).
    Ratios are linearised at the estimate. A rate of fewer than 50 items, or of fewer than ten hits
    or misses, gets Wilson's interval at the same multiple, and counts as independent of the others,
    which can only widen them.

    Args:
        numerators: shape `[figures, items]`; of a rate, 0 to 1 times its denominator.
        denominators: same shape, not negative: 1 for a mean over items, 0 for items that do not
            count, other numbers as weights.
        strata: the benchmark of each item, shape `[items]`, any sortable dtype.
        rates: bool, shape `[figures]`, which figures are rates in [0, 1].

    Returns:
        Ends of shape `[figures]`; NaN where a denominator sums to 0, and where values are so few,
        or so much the same, that resamples with little or no spread are common: their own interval
        would mean nothing, and they must not widen the others'. Figures of values that are
        nowhere negative have no negative ends.

    Raises:
        UserError: shapes differ, there are no items, or a value is not finite.
    """
    above, below = _checked(numerators, denominators, strata, rates)
    total = below.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = above.sum(axis=1) / total
        counted = total**2 / (below**2).sum(axis=1)  # items; the effective number of weighted ones
        residuals = (above - estimate[:, None] * below) * (strata.size / total[:, None])
        rarer = np.minimum(estimate, 1 - estimate) * counted
    error = _standard_errors(residuals, strata)
    by_count = rates & ((counted < SMALL) | (rarer < RARE))
    sound = np.isfinite(estimate) & (error > 0) & ~by_count
    t = _resampled_t(residuals[sound], strata)
    finite = np.where(np.isinf(t), 0.0, t)
    vague = np.isinf(t).sum(axis=0) > VAGUE * REPLICATES
    vague |= np.quantile(finite, LEVEL, axis=0) > HEAVY
    error[np.flatnonzero(sound)[vague]] = np.nan
    multiple = _multiple(t[:, ~vague], alone=int(by_count.sum()))
    low, high = estimate - multiple * error, estimate + multiple * error
    low = np.where((above >= 0).all(axis=1), np.maximum(low, 0.0), low)
    high = np.where(rates, np.minimum(high, 1.0), high)
    score = _score(estimate[by_count], counted[by_count], multiple)
    low[by_count], high[by_count] = score.low, score.high
    return Interval(low, high)


def _checked(
    numerators: NDArray[Any], denominators: NDArray[Any], strata: NDArray[Any], rates: NDArray[Any]
) -> tuple[Floats, Floats]:
    above, below = numerators.astype(np.float64), denominators.astype(np.float64)
    if above.shape != (rates.size, strata.size) or below.shape != above.shape:
        raise UserError(
            f"numerators of shape {list(above.shape)} and denominators of shape "
            f"{list(below.shape)} do not fit {rates.size} figures of {strata.size} items"
        )
    if strata.size == 0:
        raise UserError("an interval needs at least one item")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise UserError("a mean needs finite values", hint="name the failed candidates instead")
    return above, below


def _resampled_t(residuals: Floats, strata: NDArray[Any]) -> Floats:
    """Return |t| of residuals `[figures, items]` in each resample, shape `[REPLICATES, figures]`.

    Infinite where a resample is off the estimate and has no spread.
    """
    rng = np.random.default_rng(SEED)
    members = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    found = []
    for _ in range(REPLICATES // _CHUNK):
        total = np.zeros((_CHUNK, len(residuals)))
        variance = np.zeros_like(total)
        for items in members:
            n = items.size
            part = residuals[:, items].T
            part = part - part.mean(axis=0)
            weights = rng.multinomial(n, np.full(n, 1 / n), size=_CHUNK).astype(np.float64)
            sums = weights @ part
            total += sums
            variance += (weights @ part**2 - sums**2 / n) * (n / max(n - 1, 1))
        # What is left of no spread is rounding.
        tiny = 1e-12 * (residuals**2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.abs(total) / np.sqrt(np.where(variance > tiny, variance, 0.0))
        found.append(np.nan_to_num(t, posinf=np.inf))
    return np.concatenate(found)


def _multiple(t: Floats, alone: int) -> float:
    """Return the quantile of the largest |t| of all figures, `alone` more being normal ones."""
    lone = np.abs(np.random.default_rng(SEED + 1).standard_normal((len(t), alone)))
    finite = np.where(np.isinf(t), 0.0, t)
    t = np.where(np.isinf(t), finite.max(axis=0, initial=0.0), t)
    return float(np.quantile(np.hstack([t, lone]).max(axis=1, initial=0.0), LEVEL))


def _standard_errors(residuals: Floats, strata: NDArray[Any]) -> Floats:
    """Return the standard errors of the means of residuals `[figures, items]` over items."""
    variance = np.zeros(len(residuals))
    for name in np.unique(strata):
        part = residuals[:, strata == name]
        n = part.shape[1]
        variance += n * part.var(axis=1) * (n / max(n - 1, 1))
    return np.sqrt(variance) / strata.size


def _score(rate: Floats, n: Floats, z: float) -> Interval:
    """Return Wilson's interval at any normal quantile z; see `intervals.wilson`."""
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # The ends are exact at no and at all successes; rounding must not leave 1e-17 there.
    low = np.where(rate == 0, 0.0, centre - half)
    return Interval(low, np.where(rate == 1, 1.0, centre + half))
