"""Trade-offs between objectives that are all minimised: dominance, hypervolume, knee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2s_hpc.errors import UserError

Floats = NDArray[np.float64]


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points no other point dominates; equal points stand or fall together.

    A point dominates another if it is nowhere larger and somewhere smaller. Two objectives take
    O(n log n), more take O(n²) comparisons of whole points.

    Args:
        points: shape `[n, m]`, all minimised.

    Raises:
        UserError: the shape is not `[n, m]`, or a value is not finite.
    """
    values = _finite(points)
    # Distinct points in lexicographic order: only an earlier one can dominate a later one.
    distinct, inverse = np.unique(values, axis=0, return_inverse=True)
    keep = _keep_two(distinct) if distinct.shape[1] == 2 else _keep_any(distinct)
    return keep[inverse.reshape(-1)]


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume between the points and the reference, exactly.

    Two objectives by a sweep, more by slicing along the last one (HSO: While et al. 2006, IEEE
    Trans. Evol. Comp. 10, 29-38), which is meant for a handful of objectives. Points that are not
    below the reference in every objective contribute nothing.

    Args:
        points: shape `[n, m]`, all minimised.
        reference: shape `[m]`, in the same units; the answer's unit is the product of them.

    Raises:
        UserError: the shapes do not fit, or a value is not finite.
    """
    values = _finite(points)
    corner = _finite(np.atleast_2d(reference))[0]
    if corner.shape != values.shape[1:]:
        raise UserError(
            f"the reference has {corner.size} objectives and the points have {values.shape[1]}"
        )
    return _volume(values[(values < corner).all(axis=1)], corner)


def knee(points: ArrayLike) -> int:
    """Return the index of the non-dominated point that lies farthest before the extremes' line.

    Objectives are scaled to [0, 1] over the front; there the line through the two extremes is
    x + y = 1, and the distance before it grows as x + y falls (I. Das 1999, Structural
    Optimization 18, 107-115). With more objectives the plane Σx = 1 takes the line's place. Ties
    go to the point that comes first in lexicographic order.

    Args:
        points: shape `[n, m]`, all minimised, n >= 1.

    Raises:
        UserError: there is no point, the shape is not `[n, m]`, or a value is not finite.
    """
    values = _finite(points)
    if not len(values):
        raise UserError("a knee needs at least one point")
    on_front = np.flatnonzero(non_dominated(values))
    front = values[on_front]
    low, high = front.min(axis=0), front.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    total = ((front - low) / span).sum(axis=1)
    first = np.lexsort((*front.T[::-1], total))[0]
    return int(on_front[first])


@dataclass(frozen=True)
class Attainment:
    """What several runs reach in two minimised objectives.

    Attributes:
        first: the values of the first objective at which something changes, rising, shape `[x]`.
        second: shape `[runs, x]`; row k - 1 is the smallest second objective that at least k runs
            reach with a first objective of at most `first`; inf where fewer than k runs do.
    """

    first: Floats
    second: Floats


def attainment(points_by_run: Sequence[ArrayLike]) -> Attainment:
    """Return the empirical attainment surfaces of several runs.

    Row 0 is what the best run reaches, the last one what every run reaches, and the middle one what
    a typical run does (V. Grunert da Fonseca, C. Fonseca and A. Hall 2001, EMO, LNCS 1993,
    213-225).

    Args:
        points_by_run: for each run its points, shape `[n, 2]`, both minimised; a run may have none.

    Raises:
        UserError: there is no run, a shape is not `[n, 2]`, or a value is not finite.
    """
    if not points_by_run:
        raise UserError("attainment needs at least one run")
    runs = [_finite(points) if np.size(points) else np.empty((0, 2)) for points in points_by_run]
    for points in runs:
        if points.shape[1] != 2:
            raise UserError(f"attainment is of two objectives, not {points.shape[1]}")
    first = np.unique(np.concatenate([points[:, 0] for points in runs]))
    best = np.full((len(runs), first.size), np.inf)
    for row, points in zip(best, runs, strict=True):
        np.minimum.at(row, np.searchsorted(first, points[:, 0]), points[:, 1])
        np.minimum.accumulate(row, out=row)
    return Attainment(first, np.sort(best, axis=0))


def needed(points: ArrayLike, targets: ArrayLike) -> Floats:
    """Return the smallest second objective of a point whose first is at most each target.

    Args:
        points: shape `[n, 2]`, both minimised; none is allowed.
        targets: values of the first objective, shape `[t]`.

    Returns:
        Shape `[t]`; inf where no point reaches the target.

    Raises:
        UserError: the shape is not `[n, 2]`, or a value is not finite.
    """
    surface = attainment([points])
    at = np.searchsorted(surface.first, np.asarray(targets, dtype=np.float64), side="right")
    return np.asarray(np.concatenate([[np.inf], surface.second[0]])[at], dtype=np.float64)


def _finite(points: ArrayLike) -> Floats:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise UserError(f"points must have shape [n, objectives], not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise UserError(
            "an objective is not finite",
            hint="give a failed candidate the worst finite value and name it",
        )
    return values


def _keep_two(distinct: Floats) -> NDArray[np.bool_]:
    """In order of the first objective, a point stays if its second is a new minimum."""
    second = distinct[:, 1]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], second]))[:-1]
    return second < best_before


def _keep_any(distinct: Floats) -> NDArray[np.bool_]:
    keep = np.ones(len(distinct), dtype=bool)
    for i in range(1, len(distinct)):
        keep[i] = not (distinct[:i][keep[:i]] <= distinct[i]).all(axis=1).any()
    return keep


def _volume(points: Floats, corner: Floats) -> float:
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    front = np.unique(points[non_dominated(points)], axis=0)
    if len(corner) == 2:
        return _area(front, corner)
    front = front[np.argsort(front[:, -1], kind="stable")]
    depths = np.diff(np.append(front[:, -1], corner[-1]))
    slices = (_volume(front[: i + 1, :-1], corner[:-1]) for i in range(len(front)))
    return float(sum(depth * slice_ for depth, slice_ in zip(depths, slices, strict=True)))


def _area(front: Floats, corner: Floats) -> float:
    """The staircase under a front that is sorted by its first, so falling in its second."""
    widths = np.diff(np.append(front[:, 0], corner[0]))
    return float((widths * (corner[1] - front[:, 1])).sum())
