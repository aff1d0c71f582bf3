"""95 % intervals of rates and means over benchmark items, and tests of paired differences.

Items are resampled within their benchmark, and all candidates share one set of resamples, so that
intervals are repeatable and candidates stay comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2s_hpc.errors import UserError

Floats = NDArray[np.float64]
Sides = tuple[Floats, Floats]
"""Numerator and denominator."""

Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
QUANTILES = (0.025, 0.975)
SMALL = 50  # below this count the percentile bootstrap of a rate covers visibly less than 95 %
FEW = 20  # nor does it cover where fewer are hit, or missed: 91 to 93 % at 8 to 16 hits
REPLICATES = 2000
SEED = 20250101
_CHUNK = 250  # resamples whose item weights are in memory at once; divides REPLICATES


@dataclass(frozen=True)
class Interval:
    """A 95 % interval for each candidate; NaN where the quantity itself is null.

    Attributes:
        low: lower ends, in the unit of the quantity, a float or shape `[candidates]`.
        high: upper ends, same shape.
    """

    low: Floats
    high: Floats


def wilson(count: ArrayLike, n: ArrayLike) -> Interval:
    """Return Wilson's score interval of the proportion `count / n`, elementwise; NaN where n = 0.

    Source: E. B. Wilson (1927), JASA 22, 209-212.

    Raises:
        UserError: a count is negative or exceeds its n.
    """
    k, total = (x.astype(np.float64) for x in np.broadcast_arrays(count, n))
    if not np.all((k >= 0) & (k <= total)):
        raise UserError("a count must lie between 0 and its total")
    with np.errstate(invalid="ignore", divide="ignore"):
        p = k / total
        centre = (p + Z**2 / (2 * total)) / (1 + Z**2 / total)
        half = Z * np.sqrt(p * (1 - p) / total + Z**2 / (4 * total**2)) / (1 + Z**2 / total)
    # The ends are exact at no and at all successes; rounding must not leave 1e-17 there.
    low = np.where(k == 0, np.where(total > 0, 0.0, np.nan), centre - half)
    high = np.where(k == total, np.where(total > 0, 1.0, np.nan), centre + half)
    return Interval(low[()], high[()])


def rate_interval(
    numerator: NDArray[Any], denominator: NDArray[Any], strata: NDArray[Any]
) -> Interval:
    """Return the interval of the pooled rate Σ numerator / Σ denominator over items.

    A percentile bootstrap over items, stratified, that resamples numerator and denominator
    together. Where the denominator counts fewer than 50, or fewer than 20 of it are hit, or
    missed, the bootstrap covers too little and Wilson's interval on the count stands in. NTR is
    `(solved & ~right, solved)`, PTR `(~solved & right, ~solved)`, accuracy `(right, ones)`.

    Items with several samples come as shares of their samples: each item is one cluster, and
    Wilson's interval on the sums is wide enough, or too wide, for shares vary no more than 0 and 1.

    Args:
        numerator: bool or in [0, 1], shape `[items]` or `[candidates, items]`, at most the
            `denominator`.
        denominator: bool or in [0, 1], shape `[items]`.
        strata: the benchmark of each item, shape `[items]`, any sortable dtype.

    Raises:
        UserError: shapes differ, there are no items, or a numerator exceeds its denominator.
    """
    hit, base = numerator.astype(np.float64), denominator.astype(np.float64)
    _check_rate(hit, base, strata)

    def resampled() -> Sides:
        sums = _resampled_sums(np.vstack([hit, base]), strata)
        return sums[:-1].reshape(*hit.shape[:-1], REPLICATES), sums[-1]

    return _rate_interval(hit.sum(axis=-1), base.sum(), resampled)


def transfer_intervals(
    lost: NDArray[Any],
    solved: NDArray[Any],
    gained: NDArray[Any],
    unsolved: NDArray[Any],
    strata: NDArray[Any],
) -> dict[str, Interval]:
    """Return the intervals of `ntr`, `ptr` and `accuracy`, each as `rate_interval` gives it.

    All come from the same resampled sums over items: NTR = lost / solved, PTR = gained / unsolved
    and accuracy = (solved - lost + gained) / n.

    Args:
        lost: how often a merge loses what some parent solves, at most `solved`, shape
            `[candidates, items]`.
        solved: how often some parent solves an item, in [0, 1], shape `[items]`.
        gained: how often a merge solves what no parent does, at most `unsolved`, shape of `lost`.
        unsolved: the rest to 1 of `solved`.
        strata: the benchmark of each item, shape `[items]`, any sortable dtype.

    Raises:
        UserError: as `rate_interval`.
    """
    _check_rate(lost, solved, strata)
    _check_rate(gained, unsolved, strata)
    many = len(lost)

    @cache
    def resampled() -> NDArray[np.float64]:
        return _resampled_sums(np.vstack([lost, gained, solved, unsolved]), strata)

    def interval(sides: Callable[[Floats, Floats, Floats, Floats], Sides]) -> Interval:
        sums = (values.sum(axis=-1) for values in (lost, gained, solved, unsolved))
        return _rate_interval(
            *sides(*sums),
            lambda: sides(*np.split(resampled(), (many, 2 * many, 2 * many + 1))),
        )

    return {
        "ntr": interval(lambda lost, gained, solved, unsolved: (lost, solved)),
        "ptr": interval(lambda lost, gained, solved, unsolved: (gained, unsolved)),
        "accuracy": interval(
            lambda lost, gained, solved, unsolved: (solved - lost + gained, solved + unsolved)
        ),
    }


def mean_interval(values: NDArray[Any], strata: NDArray[Any]) -> Interval:
    """Return the interval of the mean over items, by a stratified percentile bootstrap.

    Args:
        values: for instance output tokens, shape `[items]` or `[candidates, items]`.
        strata: the benchmark of each item, shape `[items]`, any sortable dtype.

    Raises:
        UserError: shapes differ, there are no items, or a value is not finite.
    """
    _check(values, strata)
    if not np.all(np.isfinite(values)):
        raise UserError("a mean needs finite values", hint="name the failed candidates instead")
    sums = _resampled_sums(np.atleast_2d(values), strata)
    means = (sums / strata.size).reshape(*values.shape[:-1], REPLICATES)
    low, high = np.quantile(means, QUANTILES, axis=-1)
    return Interval(low, high)


def macro_interval(counts: NDArray[Any], totals: NDArray[Any]) -> Interval:
    """Return the interval of the unweighted mean of the benchmarks' rates.

    Wilson's intervals of the benchmarks are combined by the distances of their ends from the rates
    (MOVER: Zou and Donner 2008, Statistics in Medicine 27, 1693-1702), because the bootstrap
    covers too little for a benchmark of 30 items. NaN where a benchmark's total is 0.

    Args:
        counts: shape `[benchmarks]` or `[candidates, benchmarks]`.
        totals: shape `[benchmarks]`, or that of `counts`.

    Raises:
        UserError: a count is negative or exceeds its total.
    """
    each = wilson(counts, totals)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = counts / np.asarray(totals, dtype=np.float64)
    n, macro = rates.shape[-1], rates.mean(axis=-1)
    below = np.sqrt(((rates - each.low) ** 2).sum(axis=-1)) / n
    above = np.sqrt(((each.high - rates) ** 2).sum(axis=-1)) / n
    return Interval(macro - below, macro + above)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Under the null hypothesis the smaller discordant count is binomial with probability 1/2
    (Q. McNemar 1947, Psychometrika 12, 153-157). Computed in integers, so exact at any size.

    Args:
        only_a: items that only candidate A solves.
        only_b: items that only candidate B solves.

    Raises:
        UserError: a count is negative.
    """
    if only_a < 0 or only_b < 0:
        raise UserError("discordant counts cannot be negative")
    n, fewer = int(only_a + only_b), int(min(only_a, only_b))
    term = tail = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values adjusted for their number (S. Holm 1979, Scand. J. Statistics 6, 65-70).

    Args:
        p_values: shape `[tests]`; the answer has the same order.

    Raises:
        UserError: a p-value is not between 0 and 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise UserError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return np.minimum(adjusted, 1.0)


def _rate_interval(count: Floats, total: Floats, resampled: Callable[[], Sides]) -> Interval:
    """Return the interval of `count / total`; the resampled ones are asked for only if needed."""
    # Sums of many shares miss whole numbers, and each other, by rounding steps.
    total = np.round(total, 9)
    count = np.clip(np.round(count, 9), 0, total)
    by_count = wilson(count, total)
    few = (total < SMALL) | (np.minimum(count, total - count) < FEW)
    if np.all(few):
        return by_count
    # No resample of 50 or more is empty: the odds are below exp(-50).
    above, below = resampled()
    low, high = np.quantile(above / below, QUANTILES, axis=-1)
    low, high = np.where(few, (by_count.low, by_count.high), (low, high))
    return Interval(low[()], high[()])


def _check_rate(hit: NDArray[Any], base: NDArray[Any], strata: NDArray[Any]) -> None:
    _check(hit, strata)
    if base.shape != strata.shape or np.any((hit < 0) | (hit > base)) or np.any(base > 1):
        raise UserError(
            "each item of the numerator must be an item of the denominator, of shape [items]"
        )


def _check(values: NDArray[Any], strata: NDArray[Any]) -> None:
    if values.ndim not in (1, 2) or values.shape[-1:] != strata.shape:
        raise UserError(
            f"values of shape {list(values.shape)} do not fit strata of shape {list(strata.shape)}",
            hint="values are [items] or [candidates, items], strata are [items]",
        )
    if strata.size == 0:
        raise UserError("an interval needs at least one item")


def _resampled_sums(values: NDArray[Any], strata: NDArray[Any]) -> Floats:
    """Return the sums of `values [rows, items]` over resampled items, shape `[rows, REPLICATES]`.

    Sums of counts are whole numbers and exact, so they depend on no BLAS or thread.
    """
    kind = np.float32 if _exact_in_float32(values) else np.float64
    rows: NDArray[Any] = values.astype(kind)
    weights: NDArray[Any] = _weights(_codes(strata))
    sums = np.empty((len(rows), REPLICATES))
    for start in range(0, REPLICATES, _CHUNK):
        part = slice(start, start + _CHUNK)
        sums[:, part] = rows @ weights[part].astype(kind).T
    return sums


def _exact_in_float32(values: NDArray[Any]) -> bool:
    """Whether sums over resampled items are exact in 24 bits: of verdicts, or of halves of them."""
    if 64 * values.shape[-1] * float(np.abs(values).max()) >= 1 << 24:
        return False
    parts = 64.0 * values
    return bool(np.all(parts == np.rint(parts)))


def _codes(strata: NDArray[Any]) -> bytes:
    """Return the number of each item's stratum, in sorted order."""
    return np.asarray(np.unique(strata, return_inverse=True)[1], dtype=np.int32).tobytes()


@lru_cache(maxsize=16)
def _weights(codes: bytes) -> NDArray[np.uint16]:
    """Return how often each resample holds each item, shape `[REPLICATES, items]`.

    All rates of a benchmark are resampled with the same weights, which are drawn once.
    """
    rng, strata = np.random.default_rng(SEED), np.frombuffer(codes, dtype=np.int32)
    members = [np.flatnonzero(strata == number) for number in range(int(strata.max()) + 1)]
    found = np.empty((REPLICATES, strata.size), dtype=np.uint16)
    for start in range(0, REPLICATES, _CHUNK):
        for items in members:
            drawn = rng.integers(items.size, size=(_CHUNK, items.size))
            drawn += np.arange(_CHUNK)[:, None] * items.size  # each resample counts on its own
            counts = np.bincount(drawn.ravel(), minlength=_CHUNK * items.size)
            found[start : start + _CHUNK, items] = counts.reshape(_CHUNK, items.size)
    return found
