"""Simultaneous intervals of a front: joint coverage on synthetic fronts, and the odd cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import wilson
from l2s_hpc.measures.simultaneous import simultaneous

SIZES = (150, 50)
STRATA = np.repeat([0, 1], SIZES)
POINTS = 6
FRONTS = 500
Matrix = NDArray[np.float64]


def front(rng: np.random.Generator, strata: NDArray[np.int64], skill: float) -> Matrix:
    """Return verdicts and tokens `[2 * POINTS, items]` of models that find the same items hard.

    The second benchmark is harder; lengths are skewed, longer for hard items, and capped.
    """
    hard = rng.normal(size=strata.size) + strata
    odds = 1.5 * hard - skill - np.linspace(-0.5, 1.0, POINTS)[:, None]
    right = rng.random((POINTS, strata.size)) < 1 / (1 + np.exp(odds))
    noise = 0.6 * rng.normal(size=(POINTS, strata.size))
    lengths = np.exp(np.linspace(4.5, 6.0, POINTS)[:, None] + 0.4 * hard + noise)
    return np.vstack([right, np.minimum(np.round(lengths), 2000)])


def truth(skill: float) -> Matrix:
    rng = np.random.default_rng(99)
    parts = [front(rng, np.full(400_000, name), skill).mean(axis=1) for name in (0, 1)]
    return np.average(parts, axis=0, weights=SIZES)


@pytest.mark.parametrize("skill", [1.0, 3.0])
def test_all_figures_of_a_front_lie_in_their_intervals_in_95_of_100_fronts(skill: float) -> None:
    rng = np.random.default_rng(7)
    rates = np.repeat([True, False], POINTS)
    known = truth(skill)
    covered = []
    for _ in range(FRONTS):
        values = front(rng, STRATA, skill)
        found = simultaneous(values, np.ones_like(values), STRATA, rates)
        covered.append(np.all((found.low <= known) & (known <= found.high)))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_ratios_are_covered_jointly_too() -> None:
    """Shares of the items that a parent solves, as NTR is: the denominator is random as well."""
    rng = np.random.default_rng(11)
    skill = 1.0
    big = front(np.random.default_rng(98), np.repeat([0, 1], (600_000, 200_000)), skill)
    solved = big[POINTS - 1]
    known = (solved * (1 - big[:5])).sum(axis=1) / solved.sum()
    covered = []
    for _ in range(FRONTS):
        values = front(rng, STRATA, skill)
        base = np.tile(values[POINTS - 1], (5, 1))
        found = simultaneous(base * (1 - values[:5]), base, STRATA, np.full(5, True))
        covered.append(np.all((found.low <= known) & (known <= found.high)))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_they_are_wider_than_those_of_each_figure_alone() -> None:
    values = front(np.random.default_rng(1), STRATA, 1.0)
    rates = np.repeat([True, False], POINTS)
    together = simultaneous(values, np.ones_like(values), STRATA, rates)
    for row in range(2 * POINTS):
        chosen = slice(row, row + 1)
        one = values[chosen]
        alone = simultaneous(one, np.ones_like(one), STRATA, rates[chosen])
        assert together.low[row] < alone.low[0] < one.mean() < alone.high[0] < together.high[row]


def test_rare_and_missing_counts_get_wilsons_form() -> None:
    strata = np.zeros(200, dtype=int)
    right = np.vstack([np.ones(200), np.zeros(200), np.r_[np.zeros(197), np.ones(3)]])
    found = simultaneous(right, np.ones_like(right), strata, np.full(3, True))
    each = wilson([200, 0, 3], 200)
    assert (found.high[0], found.low[1]) == (1.0, 0.0)
    assert (found.low < each.low + 1e-12).all() and (found.high > each.high - 1e-12).all()
    assert found.low[0] > 0.94 and found.high[1] < 0.06


def test_no_denominator_gives_no_interval_and_constant_values_a_point() -> None:
    strata = np.zeros(60, dtype=int)
    above = np.vstack([np.zeros(60), np.full(60, 7.0)])
    below = np.vstack([np.zeros(60), np.ones(60)])
    found = simultaneous(above, below, strata, np.array([True, False]))
    assert np.isnan(found.low[0]) and np.isnan(found.high[0])
    assert (found.low[1], found.high[1]) == (7.0, 7.0)


def test_too_few_values_give_no_interval_of_a_mean_and_leave_the_others_alone() -> None:
    """Four answers of two lengths: one resample in eight has no spread at all."""
    strata = np.zeros(4, dtype=int)
    values = np.array([[24.0, 26, 24, 26], [1, 0, 1, 1]])
    found = simultaneous(values, np.ones_like(values), strata, np.array([False, True]))
    assert np.isnan(found.low[0]) and np.isnan(found.high[0])
    assert 0 < found.low[1] < 0.75 < found.high[1] < 1


def test_lengths_that_are_nearly_the_same_do_not_widen_the_others() -> None:
    """A short model answers with five tokens but for three answers; the others think."""
    rng = np.random.default_rng(3)
    lengths = np.round(np.exp(rng.normal(4.5, 0.4, size=(3, 40))))
    same = np.full(40, 5.0)
    same[[0, 13, 27]] = (6, 6, 7)
    strata, means = np.zeros(40, dtype=int), np.zeros(4, dtype=bool)
    beside = np.vstack([lengths, same])
    found = simultaneous(beside, np.ones_like(beside), strata, means)
    alone = simultaneous(lengths, np.ones_like(lengths), strata, means[:3])
    assert np.isnan(found.low[3]) and np.isnan(found.high[3])
    np.testing.assert_allclose(found.low[:3], alone.low)
    np.testing.assert_allclose(found.high[:3], alone.high)
    assert np.all(found.low[:3] > 0)


def test_what_does_not_fit_is_said() -> None:
    ones = np.ones((2, 5))
    strata, rates = np.zeros(5, dtype=int), np.full(2, True)
    with pytest.raises(UserError, match=r"shape \[2, 5\] .* do not fit 2 figures of 4 items"):
        simultaneous(ones, ones, strata[:4], rates)
    with pytest.raises(UserError, match="finite"):
        simultaneous(ones * np.nan, ones, strata, rates)
    with pytest.raises(UserError, match="at least one item"):
        simultaneous(ones[:, :0], ones[:, :0], strata[:0], rates)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 80), st.integers(1, 4))
def test_intervals_hold_their_estimates_and_are_repeatable(seed: int, n: int, figures: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.random((figures, n)) < rng.random((figures, 1))).astype(float)
    strata = rng.integers(3, size=n)
    found = simultaneous(values, np.ones_like(values), strata, np.full(figures, True))
    estimate = values.mean(axis=1)
    assert (found.low >= 0).all() and (found.high <= 1).all()
    assert (found.low <= estimate + 1e-9).all() and (estimate <= found.high + 1e-9).all()
    again = simultaneous(values, np.ones_like(values), strata, np.full(figures, True))
    assert (found.low == again.low).all() and (found.high == again.high).all()
