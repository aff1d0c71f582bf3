"""Transfer rates: the identity, the bounds, hand-made tables and the recorded figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.transfer import transfer

Scores = NDArray[np.uint8]
RECORDED = Path(__file__).parents[2].parent / "shared" / "upstream" / "scores"
TASKS = ["aime24", "college_math", "gsm8k", "math", "minerva_math", "olympiadbench"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Scores, Scores]:
    """Parents `[p, n]` and merges `[c, n]` with any share of ones, all and none included."""
    n, p, c = draw(st.integers(1, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    bits = st.integers(0, 1)
    return draw(arrays(np.uint8, (p, n), elements=bits)), draw(
        arrays(np.uint8, (c, n), elements=bits)
    )


@given(tables())
def test_accuracy_is_what_is_kept_plus_what_is_gained(table: tuple[Scores, Scores]) -> None:
    parents, merged = table
    t = transfer(parents, merged)
    kept = np.where(np.isnan(t.ntr), 0, t.u * (1 - t.ntr))
    new = np.where(np.isnan(t.ptr), 0, (1 - t.u) * t.ptr)
    np.testing.assert_allclose(t.accuracy, kept + new, atol=1e-12, rtol=0)
    np.testing.assert_allclose(t.accuracy, merged.mean(axis=1), atol=1e-12, rtol=0)


@given(tables())
def test_rates_are_null_exactly_where_they_have_no_items(table: tuple[Scores, Scores]) -> None:
    t = transfer(*table)
    assert np.isnan(t.ntr).all() if t.n_solved == 0 else ((t.ntr >= 0) & (t.ntr <= 1)).all()
    assert np.isnan(t.ptr).all() if t.n_solved == t.n else ((t.ptr >= 0) & (t.ptr <= 1)).all()


@given(tables(), st.randoms())
def test_the_order_of_items_and_parents_does_not_matter(
    table: tuple[Scores, Scores], random: Any
) -> None:
    parents, merged = table
    items = random.sample(range(parents.shape[1]), parents.shape[1])
    a, b = transfer(parents, merged), transfer(parents[::-1, items], merged[:, items])
    np.testing.assert_array_equal(a.ntr, b.ntr)
    np.testing.assert_array_equal(a.ptr, b.ptr)


@given(tables())
def test_many_candidates_at_once_are_the_same_as_one_by_one(table: tuple[Scores, Scores]) -> None:
    parents, merged = table
    together = transfer(parents, merged)
    for i, row in enumerate(merged):
        alone = transfer(parents.astype(bool), row)
        assert np.shape(alone.ntr) == ()
        np.testing.assert_array_equal(alone.ntr, together.ntr[i])
        assert (alone.lost, alone.gained) == (together.lost[i], together.gained[i])


def test_a_table_worked_by_hand() -> None:
    parents = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]])
    t = transfer(parents, np.array([1, 0, 0, 1, 0]))
    assert [t.n, t.n_solved, t.u, t.lost, t.gained] == [5, 3, 0.6, 2, 1]
    assert [t.ntr, t.ptr, t.accuracy] == [2 / 3, 1 / 2, 2 / 5]


def test_a_parent_itself_gains_nothing_and_loses_what_only_the_other_solves() -> None:
    parents = np.array([[1, 1, 0, 0], [0, 1, 1, 0]])
    t = transfer(parents, parents)
    assert t.ptr.tolist() == [0, 0] and t.lost.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("parents", "merged", "says"),
    [
        (np.ones((2, 5)), np.ones(4), r"parents have shape \[2, 5\] and merges \[4\]"),
        (np.ones(5), np.ones(5), r"\[parents, items\] and \[items\]"),
        (np.ones((2, 5)), np.ones((1, 1, 5)), "none is dropped silently"),
        (np.ones((2, 0)), np.ones(0), "at least one parent and one item"),
        (np.ones((0, 5)), np.ones(5), "at least one parent and one item"),
        (np.ones((2, 2)), np.array([1, np.nan]), "scores must be 0 or 1"),
        (np.full((2, 2), 100), np.ones(2), "scores must be 0 or 1"),
    ],
)
def test_what_does_not_fit_is_the_users_error(parents: Scores, merged: Scores, says: str) -> None:
    with pytest.raises(UserError, match=says):
        transfer(parents, merged)


def recorded(model: str) -> Scores:
    """The pooled 0/1 scores of a recorded model, tasks in one fixed order."""
    torch = pytest.importorskip("torch")
    folder = RECORDED / model / "scores"
    parts = [torch.load(folder / f"{task}_scores.pt", weights_only=True) for task in TASKS]
    return np.concatenate([part.numpy() for part in parts])


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded scores are not here")
def test_the_recorded_figures_of_three_published_merges() -> None:
    parents = np.stack([recorded("DEEPSEEK-R1/1.5B"), recorded("QWEN25-MATH/1.5B")])
    names = ("01", "02", "12")
    merges = np.stack([recorded(f"Mergenetic-TA-Multiobj/1.5B/{name}") for name in names])
    t = transfer(parents, merges)
    assert (t.n, round(t.u, 4)) == (5614, 0.5616)
    assert t.ntr.round(4).tolist() == [0.2258, 0.1066, 0.0993]
    assert t.ptr.round(4).tolist() == [0.1187, 0.1597, 0.1556]
    assert t.accuracy.round(4).tolist() == [0.4868, 0.5718, 0.5741]
    own = transfer(parents, parents)
    assert own.ntr.round(4).tolist() == [0.0771, 0.4256]
