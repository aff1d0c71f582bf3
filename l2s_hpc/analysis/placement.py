"""Where words stand beside points so that they cover neither points, lines nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

Align = Literal["left", "center", "right"]

_LETTER, _LINE, _POINT, _GAP = 6.6, 15.0, 6.0, 10
"""Pixels: a letter's mean width, a line's height, a point's half size, and the space between."""


@dataclass(frozen=True)
class Mark:
    """A point in data units, the word beside it (nothing: only a point), and its kind."""

    x: float
    y: float
    word: str
    kind: str


@dataclass(frozen=True)
class Place:
    """Where a word stands: its alignment and its shift from the point in pixels."""

    align: Align
    dx: int
    dy: int


PLACES = (
    Place("left", _GAP, 0),
    Place("right", -_GAP, 0),
    Place("left", _GAP, 14),
    Place("right", -_GAP, -14),
    Place("left", _GAP, -14),
    Place("right", -_GAP, 14),
    Place("center", 0, -19),
    Place("center", 0, 19),
)


def place(marks: Sequence[Mark], lines: Sequence[str], size: tuple[int, int]) -> list[Place]:
    """Return a place for each mark's word: each takes the first one where it covers least.

    Args:
        marks: all points; a word that comes earlier has the first choice.
        lines: kinds whose points are joined by a line, in their order.
        size: about the plot's width and height in pixels.
    """
    points = list(_pixels(marks, size))
    taken = [_around(point, _POINT) for point in points]
    for kind in lines:
        line = [point for mark, point in zip(marks, points, strict=True) if mark.kind == kind]
        taken += [_around(point, 2.0) for a, b in pairwise(line) for point in _between(a, b)]
    found = []
    for mark, point in zip(marks, points, strict=True):
        if not mark.word:
            found.append(PLACES[0])
            continue
        boxes = [_box(point, where, mark.word) for where in PLACES]
        covered = [sum(_overlap(b, other) for other in taken) + _outside(b, size) for b in boxes]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        found.append(PLACES[best])
    return found


def _pixels(marks: Sequence[Mark], size: tuple[int, int]) -> Iterator[Point]:
    if not marks:
        return
    right = max(mark.x for mark in marks) * 1.05 or 1.0
    low, high = min(mark.y for mark in marks), max(mark.y for mark in marks)
    for mark in marks:
        share = (mark.y - low) / (high - low) if high > low else 0.5
        yield mark.x / right * size[0], (0.95 - 0.9 * share) * size[1]


def _around(point: Point, half: float) -> Box:
    return point[0] - half, point[1] - half, point[0] + half, point[1] + half


def _between(a: Point, b: Point) -> Iterator[Point]:
    """Yield points on a line, about four pixels apart."""
    steps = max(int(math.dist(a, b) / 4), 1)
    for n in range(steps + 1):
        yield a[0] + (b[0] - a[0]) * n / steps, a[1] + (b[1] - a[1]) * n / steps


def _box(point: Point, where: Place, word: str) -> Box:
    width = _LETTER * len(word)
    left = {"left": 0.0, "center": -width / 2, "right": -width}[where.align] + point[0] + where.dx
    middle = point[1] + where.dy
    return left, middle - _LINE / 2, left + width, middle + _LINE / 2


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, size: tuple[int, int]) -> float:
    """Nothing may leave the plot at the sides; above it there is some room."""
    return 1e6 * (max(-box[0], 0.0) + max(box[2] - size[0], 0.0) + max(-_LINE - box[1], 0.0))
