"""Several samples an item: pass@k against all subsets, and intervals that cover."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.errors import UserError
from l2s_hpc.measures.intervals import mean_interval, rate_interval, wilson
from l2s_hpc.measures.samples import macro_share_interval, pass_at, share_interval, sizes


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_one(
    right: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(right)))
    subsets = list(combinations(right, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    found = pass_at(np.array([sum(right)]), len(right), k)
    assert found == pytest.approx([expected], abs=1e-15)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_rises_with_k_and_with_right_samples(samples: int, data: st.DataObject) -> None:
    counts = np.arange(samples + 1)
    k = data.draw(st.integers(1, samples))
    found = pass_at(counts, samples, k)
    assert found[0] == 0 and found[-1] == 1 and np.all(np.diff(found) >= 0)
    assert np.all(pass_at(counts, samples, samples) >= found)
    np.testing.assert_allclose(pass_at(counts, samples, 1), counts / samples, rtol=1e-15)


def test_pass_at_k_is_unbiased() -> None:
    """The mean over many draws of n samples is the true chance 1 - (1 - p)^k."""
    rng = np.random.default_rng(5)
    counts = rng.binomial(16, 0.1, size=200_000)
    for k in (1, 4, 16):
        assert pass_at(counts, 16, k).mean() == pytest.approx(1 - 0.9**k, abs=4e-3)


def test_the_k_that_are_told() -> None:
    assert sizes(1) == (1,)
    assert sizes(16) == (1, 2, 4, 8, 16)
    assert sizes(10) == (1, 2, 4, 8, 10)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_a_k_out_of_bounds_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=r"pass@-?\d needs 1 to 4 samples"):
        pass_at(np.array([1]), 4, k)


@pytest.mark.parametrize("count", [-1, 5, 0.5])
def test_a_count_out_of_bounds_is_refused(count: float) -> None:
    with pytest.raises(UserError, match="a whole number from 0 to 4"):
        pass_at(np.array([count]), 4, 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 150), st.integers(1, 3))
def test_one_sample_has_the_interval_of_a_rate(seed: int, items: int, strata: int) -> None:
    """So that mean@1 is the accuracy of every other table, with its interval."""
    rng = np.random.default_rng(seed)
    right, of = rng.random((2, items)) < 0.4, rng.integers(0, strata, items)
    ours = share_interval(right.astype(float), of)
    theirs = rate_interval(right, np.ones(items, dtype=bool), of)
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)


def test_few_items_and_sure_things_get_the_wider_interval() -> None:
    few = np.full(30, 0.5)
    strata = np.zeros(30, dtype=int)
    found = share_interval(few, strata)
    assert (found.low, found.high) == (wilson(15, 30).low, wilson(15, 30).high)
    sure = share_interval(np.ones((2, 60)), np.zeros(60, dtype=int))
    assert np.all(sure.low == wilson(60, 60).low) and np.all(sure.high == 1)
    many = np.linspace(0, 1, 60)
    drawn = share_interval(many, np.zeros(60, dtype=int))
    mean = mean_interval(many, np.zeros(60, dtype=int))
    np.testing.assert_allclose([drawn.low, drawn.high], [mean.low, mean.high], atol=1e-12)


def test_the_macro_interval_weighs_benchmarks_and_not_items() -> None:
    strata = np.array(["big"] * 400 + ["small"] * 100)
    values = np.where(strata == "big", 0.2, 0.8) + np.tile([-0.1, 0.1], 250)
    found = macro_share_interval(values, strata)
    assert found.low < 0.5 < found.high
    one = macro_share_interval(values[:400], strata[:400])
    alone = share_interval(values[:400], strata[:400])
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high))
    pair = macro_share_interval(np.stack([values, values]), strata)
    assert pair.low == pytest.approx([found.low, found.low])


def test_intervals_cover() -> None:
    """Of 200 experiments on items whose chances are drawn anew, about 95 % hold the true mean."""
    rng = np.random.default_rng(11)
    strata = np.repeat(["a", "b"], [30, 120])
    pooled = macro = 0
    for _ in range(200):
        chance = np.where(strata == "a", rng.beta(1, 3, 150), rng.beta(3, 1, 150))
        values = rng.binomial(8, chance) / 8
        found = share_interval(values, strata)
        pooled += found.low <= (30 * 0.25 + 120 * 0.75) / 150 <= found.high
        found = macro_share_interval(values, strata)
        macro += found.low <= 0.5 <= found.high
    assert 180 <= pooled <= 200 and 180 <= macro <= 200


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_what_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        share_interval(np.array([0.5, value]), np.array(["a", "a"]))


def test_no_items_are_refused() -> None:
    with pytest.raises(UserError, match="at least one item"):
        share_interval(np.array([]), np.array([]))
