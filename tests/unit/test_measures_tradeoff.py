"""Dominance, hypervolume and knee: properties, brute force, and pymoo as the second opinion."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from l2s_hpc.errors import UserError
from l2s_hpc.measures.tradeoff import hypervolume, knee, non_dominated

Floats = NDArray[np.float64]


@st.composite
def point_sets(draw: st.DrawFn, most: int = 12, objectives: int = 4) -> Floats:
    """Points `[n, m]` on a coarse grid, so that ties and duplicates are common."""
    n, m = draw(st.integers(1, most)), draw(st.integers(1, objectives))
    return draw(arrays(np.int64, (n, m), elements=st.integers(-3, 3))) / 2


def dominated_by_hand(points: Floats) -> list[bool]:
    return [any((q <= p).all() and (q < p).any() for q in points) for p in points]


@given(point_sets())
def test_non_dominated_agrees_with_the_definition(points: Floats) -> None:
    assert non_dominated(points).tolist() == [not d for d in dominated_by_hand(points)]


@given(point_sets(), st.randoms())
def test_order_does_not_matter(points: Floats, random: Any) -> None:
    order = random.sample(range(len(points)), len(points))
    assert non_dominated(points[order]).tolist() == non_dominated(points)[order].tolist()
    assert points[order][knee(points[order])].tolist() == points[knee(points)].tolist()
    corner = np.full(points.shape[1], 2.0)
    assert hypervolume(points[order], corner) == pytest.approx(hypervolume(points, corner))


def volume_by_cells(points: Floats, corner: Floats) -> float:
    """Sum all cells of the grid through the coordinates whose lower corner a point reaches."""
    axes = [np.unique(np.append(x[x < c], c)) for x, c in zip(points.T, corner, strict=True)]
    total = 0.0
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in axes)):
        low = np.array([edge[0] for edge in cell])
        if (points <= low).all(axis=1).any():
            total += float(np.prod([edge[1] - edge[0] for edge in cell]))
    return total


@given(point_sets(most=6))
def test_hypervolume_agrees_with_counting_cells(points: Floats) -> None:
    corner = np.full(points.shape[1], 1.25)
    assert hypervolume(points, corner) == pytest.approx(volume_by_cells(points, corner))


@given(point_sets())
def test_hypervolume_grows_with_every_point_and_only_with_the_front(points: Floats) -> None:
    corner = np.full(points.shape[1], 1.0)
    whole = hypervolume(points, corner)
    assert whole >= hypervolume(points[:-1], corner) - 1e-12
    assert whole == pytest.approx(hypervolume(points[non_dominated(points)], corner))


@pytest.mark.parametrize("m", [2, 3, 4])
def test_hypervolume_agrees_with_pymoo(m: int) -> None:
    indicators = pytest.importorskip("pymoo.indicators.hv")
    rng = np.random.default_rng(m)
    for _ in range(5):
        points, corner = rng.normal(size=(30, m)), np.full(m, 1.0)
        assert hypervolume(points, corner) == pytest.approx(indicators.HV(corner)(points))


def test_non_dominated_agrees_with_pymoo() -> None:
    sorting = pytest.importorskip("pymoo.util.nds.non_dominated_sorting")
    points = np.random.default_rng(0).random((200, 3))
    expected = sorting.NonDominatedSorting().do(points, only_non_dominated_front=True)
    assert sorted(expected.tolist()) == np.flatnonzero(non_dominated(points)).tolist()


def test_hand_made_fronts() -> None:
    points = [[1, 3], [2, 2], [3, 1], [2, 2], [3, 3], [1, 4]]
    assert non_dominated(points).tolist() == [True, True, True, True, False, False]
    assert hypervolume(points, [4, 4]) == 6
    assert hypervolume([[1, 1, 1], [0, 2, 2]], [3, 3, 3]) == 8 + 1
    assert hypervolume([[1.0, 2.0], [3.0, 0.5]], [3, 2]) == 0, "a point on the border adds nothing"
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0
    assert non_dominated(np.empty((0, 2))).tolist() == []
    assert non_dominated([[0.0, 1], [-0.0, 1]]).tolist() == [True, True]


def test_the_knee_is_where_the_front_bends() -> None:
    assert knee([[0, 10], [1, 2], [10, 0]]) == 1
    assert knee([[0, 10], [9, 9], [1, 2], [10, 0], [1, 2]]) == 2, "dominated points do not count"
    assert knee([[0.4, 4000.0], [0.45, 1700.0], [0.6, 800.0]]) == 1, "units do not matter"
    assert knee([[0.0, 1.0], [0.4, 0.5], [0.05, 0.55], [1.0, 0.0]]) == 2, "a sum, not a maximum"
    assert knee([[3, 3]]) == 0
    assert knee([[1, 2], [1, 2]]) == 0
    assert knee([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.1, 0.1, 0.1]]) == 2


@given(point_sets(objectives=2))
def test_the_knee_is_the_farthest_from_the_line_between_the_extremes(points: Floats) -> None:
    front = points[non_dominated(points)]
    if points.shape[1] != 2 or len(np.unique(front, axis=0)) < 3:
        return
    low, high = front.min(axis=0), front.max(axis=0)
    a, b = (np.array([low[0], high[1]]) - low) / (high - low), np.array([1.0, 0.0])

    def before(p: Floats) -> float:
        x, y = (p - low) / (high - low) - a
        return float((b - a)[1] * x - (b - a)[0] * y) / float(np.hypot(*(b - a)))

    best = max(before(p) for p in front)
    assert before(points[knee(points)]) == pytest.approx(best)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: non_dominated([[1.0, np.nan]]), "worst finite value"),
        (lambda: non_dominated([1.0, 2.0]), r"shape \[n, objectives\], not \[2\]"),
        (lambda: hypervolume([[1.0, 2.0]], [1.0]), "reference has 1 objectives"),
        (lambda: hypervolume([[1.0, np.inf]], [1.0, 1.0]), "not finite"),
        (lambda: knee(np.empty((0, 2))), "at least one point"),
    ],
)
def test_what_does_not_fit_is_the_users_error(call: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()
