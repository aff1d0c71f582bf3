"""Intervals and tests: known values, second opinions, and how often an interval covers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.errors import UserError
from l2s_hpc.measures import intervals
from l2s_hpc.measures.intervals import (
    holm,
    macro_interval,
    mcnemar,
    mean_interval,
    rate_interval,
    transfer_intervals,
    wilson,
)
from l2s_hpc.measures.transfer import shares

stats = pytest.importorskip("scipy.stats")


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_agrees_with_scipy(count: int, n: int) -> None:
    count = min(count, n)
    ours = wilson(count, n)
    theirs = stats.binomtest(count, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= count / n <= ours.high <= 1


def test_wilson_is_exact_at_the_ends_and_null_without_items() -> None:
    ends = wilson([0, 7, 0], [7, 7, 0])
    assert ends.low[0] == 0 and ends.high[1] == 1
    assert np.isnan(ends.low[2]) and np.isnan(ends.high[2])


def test_small_counts_and_extremes_use_wilson() -> None:
    strata, base = np.zeros(200, dtype=int), np.arange(200) < 49
    few = rate_interval(np.arange(200) < 7, base, strata)
    assert (few.low, few.high) == (wilson(7, 49).low, wilson(7, 49).high)
    ones = np.ones(200, dtype=bool)
    both = rate_interval(np.stack([~ones, ones, np.arange(200) < 50]), ones, strata)
    expected = wilson([0, 200], 200)
    np.testing.assert_array_equal(both.low[:2], expected.low)
    np.testing.assert_array_equal(both.high[:2], expected.high)
    assert both.low[2] != wilson(50, 200).low
    null = rate_interval(~ones, ~ones, strata)
    assert np.isnan(null.low) and np.isnan(null.high)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(60, 400))
def test_an_interval_holds_its_rate_and_is_the_same_every_time(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.random(n) < 0.95
    hit, strata = base & (rng.random((3, n)) < 0.3), rng.integers(0, 3, n)
    first, again = (rate_interval(hit, base, strata) for _ in range(2))
    rate = hit.sum(axis=1) / base.sum()
    assert ((first.low <= rate) & (rate <= first.high)).all()
    assert ((first.low >= 0) & (first.high <= 1)).all()
    np.testing.assert_array_equal(first.low, again.low)
    alone = rate_interval(hit[0], base, strata)
    assert np.shape(alone.low) == () and alone.low == first.low[0], "one resampling for all"


def test_the_bootstrap_has_the_width_that_theory_gives() -> None:
    rng = np.random.default_rng(5)
    n = 1000
    strata = np.repeat([0, 1], n // 2)
    hit = rng.random(n) < np.where(strata == 0, 0.05, 0.95)
    found = rate_interval(hit, np.ones(n), strata)
    within = [hit[strata == s].var() * n / 2 for s in (0, 1)]
    width = 2 * intervals.Z * np.sqrt(sum(within)) / n
    assert found.high - found.low == pytest.approx(width, rel=0.1), "unstratified is 2.3 x wider"


def test_numerator_and_denominator_are_resampled_together() -> None:
    """A rate of 1/2 over a denominator of 100 of 10,000 items: sd of the ratio, not of the sum."""
    base = np.arange(10_000) < 100
    found = rate_interval(np.arange(10_000) < 50, base, np.zeros(10_000))
    assert found.high - found.low == pytest.approx(2 * intervals.Z * 0.05, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 10]), st.integers(20, 400))
def test_intervals_of_transfer_are_those_of_each_rate(seed: int, samples: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    strata = rng.integers(0, 3, n)
    parents = rng.random((samples, 2, n)) < rng.choice([0.02, 0.5, 0.97])
    merged = rng.random((samples, 3, n)) < rng.choice([0.02, 0.5, 0.97])
    of = shares(parents, merged)
    found = transfer_intervals(*of.rates["ntr"], *of.rates["ptr"], strata)
    alone = {name: rate_interval(hit, base, strata) for name, (hit, base) in of.rates.items()}
    alone["accuracy"] = rate_interval(merged.mean(axis=0), np.ones(n), strata)
    assert list(found) == ["ntr", "ptr", "accuracy"]
    for name, interval in found.items():
        np.testing.assert_allclose(interval.low, alone[name].low, atol=1e-12)
        np.testing.assert_allclose(interval.high, alone[name].high, atol=1e-12)


def test_mean_interval_agrees_with_the_normal_theory() -> None:
    tokens = np.random.default_rng(1).gamma(2.0, 800.0, size=(2, 800)).round()
    found = mean_interval(tokens, np.zeros(800))
    half = intervals.Z * tokens.std(axis=1) / np.sqrt(800)
    np.testing.assert_allclose(found.low, tokens.mean(axis=1) - half, rtol=0.01)
    np.testing.assert_allclose(found.high, tokens.mean(axis=1) + half, rtol=0.01)


@pytest.mark.parametrize(("n", "least"), [(30, 0.90), (100, 0.90), (400, 0.91)])
def test_the_interval_of_a_negative_transfer_rate_covers(n: int, least: float) -> None:
    """400 seeded draws at a true NTR of .1; n items, of which half are solved."""
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(400 // 20):
        solved = np.arange(n) % 2 == 0
        lost = solved & (rng.random((20, n)) < 0.1)
        found = rate_interval(lost, solved, np.arange(n) % 3)
        covered += int(((found.low <= 0.1) & (found.high >= 0.1)).sum())
    assert covered / 400 >= least


def test_the_macro_interval_covers_and_is_wilson_for_one_benchmark() -> None:
    rng, totals = np.random.default_rng(3), np.array([7, 30, 200])
    rates = np.array([0.3, 0.1, 0.2])
    found = macro_interval(rng.binomial(totals, rates, size=(2000, 3)), totals)
    covered = ((found.low <= rates.mean()) & (rates.mean() <= found.high)).mean()
    assert 0.93 <= covered <= 0.98
    alone, one = macro_interval(np.array([3]), np.array([30])), wilson(3, 30)
    assert (alone.low, alone.high) == pytest.approx((one.low, one.high))
    assert np.isnan(macro_interval(np.array([1, 0]), np.array([5, 0])).low)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_scipys_binomial_test(a: int, b: int) -> None:
    expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9) == mcnemar(b, a)


def test_mcnemar_at_the_size_of_a_benchmark() -> None:
    assert mcnemar(0, 5) == 2 / 32
    assert 0 < mcnemar(2700, 2900) < 0.01
    assert mcnemar(0, 5600) == 0.0


def test_holm_by_hand_and_in_any_order() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_p_and_bonferroni(p: list[float], random: Any) -> None:
    adjusted = holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(np.array(p) * len(p), 1)).all()
    order = random.sample(range(len(p)), len(p))
    np.testing.assert_array_equal(holm(np.array(p)[order]), adjusted[order])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: wilson(3, 2), "between 0 and its total"),
        (lambda: rate_interval(np.ones(3), np.ones(3), np.ones(4)), r"shape \[3\] do not fit"),
        (lambda: rate_interval(np.ones(3), np.zeros(3), np.ones(3)), "item of the denominator"),
        (lambda: mean_interval(np.ones(0), np.ones(0)), "at least one item"),
        (lambda: mean_interval(np.array([1, np.nan]), np.ones(2)), "finite"),
        (lambda: mcnemar(-1, 2), "negative"),
        (lambda: holm([0.1, np.nan]), "between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_the_users_error(call: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()
