"""Whether two single elements have the same value, wherever both have one.

Without variables that is one comparison. With variables both are evaluated at random points, to 150
digits: two formulas that agree at several of them are the same formula but for a chance of about
10^-100, and one point where they differ proves that they are not. Only points count at which all
roots and logarithms are real, if there are such points.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from typing import Final

from mpmath import mp

from l2s_hpc.evaluation.grading.nodes import Node, Undecided, is_constant, symbols
from l2s_hpc.evaluation.grading.numbers import DOUBLE_DIGITS, DOUBLE_ERROR, digits_of
from l2s_hpc.evaluation.grading.values import DIGITS, Point, Undefined, Value, inexact

POINTS: Final = 6  # at which two formulas must agree
ATTEMPTS: Final = 36
_EXACT = mp.mpf(10) ** -100
_ROUGH = mp.mpf(10) ** -12
_ROUGH_SCALE = mp.mpf(1000)
_LAST_DIGITS = mp.mpf(10) ** (10 - DIGITS)
_MOST_NOISE = mp.mpf(10) ** -30

mp.dps = DIGITS


def equal(one: Node, two: Node) -> bool:
    """Tell whether two elements have the same value.

    `log` without a base may mean either base, but the same on both sides.

    Raises:
        Undecided: no rule gives their values, or they are too large.
    """
    for renamed in _with_constants_of(one, two):
        if _same_value(one, renamed, None):
            return True
    return (_has_log(one) and _has_log(two) and _same_value(one, two, 10)) or (
        _has_log(one) != _has_log(two) and not symbols(one, two) and _same_value(one, two, 10)
    )


_ANY_CONSTANT = re.compile(r"[cC](?:_\d+)?")


def _with_constants_of(one: Node, two: Node) -> Iterator[Node]:
    """Yield two, and two with its constants of integration named and ordered as in one."""
    yield two
    names = [[s for s in symbols(node) if _ANY_CONSTANT.fullmatch(s)] for node in (one, two)]
    if len(names[0]) == len(names[1]) <= 3 and not is_constant(one):
        for order in permutations(names[0]):
            if list(order) != names[1]:
                yield _renamed(two, dict(zip(names[1], order, strict=True)))


def _renamed(node: Node, names: dict[str, str]) -> Node:
    text = names.get(node.text, node.text) if node.op == "sym" else node.text
    return replace(node, text=text, args=tuple(_renamed(arg, names) for arg in node.args))


def _has_log(node: Node) -> bool:
    return any(n.op == "fn" and n.text == "log" and len(n.args) == 1 for n in node.walk())


def _same_value(one: Node, two: Node, log_base: int | None) -> bool:
    names = symbols(one, two)
    if not names:
        return _same_constant(one, two, log_base)
    agreed, doubtful = 0, []
    for point in points(names, log_base):
        try:
            same, real = _agree(one, two, point)
        except Undefined:
            continue
        if not real:
            doubtful.append(same)
        elif not same:
            return False
        else:
            agreed += 1
        if agreed == POINTS:
            return True
    if agreed >= 2:
        return True
    if len(doubtful) < POINTS:
        raise Undecided("no value at any point")
    return all(doubtful)


def _same_constant(one: Node, two: Node, log_base: int | None) -> bool:
    try:
        point, other = Point({}, log_base), Point({}, log_base)
        a, b = point.value(one), other.value(two)
        digits = max(_digits(one), _digits(two))
        if digits >= DOUBLE_DIGITS and not isinstance(a, list) and not isinstance(b, list):
            return bool(abs(inexact(a) - inexact(b)) <= abs(inexact(a)) * inexact(DOUBLE_ERROR))
        same = _close(a, b, max(point.scale, other.scale), point.rough or other.rough)
    except Undefined:
        return False
    if same and (point.cut or other.cut):
        raise Undecided("integers too large to compare exactly")
    return same


def _digits(node: Node) -> int:
    while node.op == "neg":
        node = node.args[0]
    return digits_of(node.text) if node.op == "num" else 0


def _agree(one: Node, two: Node, point: Point) -> tuple[bool, bool]:
    """Return whether both have the same value at a point, and whether all was real there."""
    a = point.value(one)
    b = point.value(two)
    return _close(a, b, point.scale, point.rough), point.real


def _close(a: Value, b: Value, scale: Value, rough: bool) -> bool:
    if isinstance(a, list) or isinstance(b, list):
        return (
            isinstance(a, list)
            and isinstance(b, list)
            and len(a) == len(b)
            and len(a[0]) == len(b[0])
            and all(
                _close(x, y, scale, rough)
                for one, two in zip(a, b, strict=True)
                for x, y in zip(one, two, strict=True)
            )
        )
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = inexact(a), inexact(b)
    if mp.isnan(a) or mp.isnan(b):
        raise Undefined("not a number")
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    size = max(abs(a), abs(b))
    if rough:
        return bool(abs(a - b) <= _ROUGH * max(size, min(scale, _ROUGH_SCALE)))
    return bool(abs(a - b) <= max(_EXACT * size, noise(scale, size)))


def noise(scale: Value, size: Value) -> Value:
    """Return by how much rounding may have moved a result, where a number of a scale cancelled.

    Raises:
        Undefined: nearly all digits cancelled; nothing can be told from what is left.
    """
    least = scale * _LAST_DIGITS
    if least > _MOST_NOISE * max(1, size):
        raise Undefined("too much cancels")
    return least


def points(names: list[str], log_base: int | None) -> Iterator[Point]:
    """Yield random points, the same for the same names; later ones have whole coordinates."""
    for n in range(ATTEMPTS):
        found = {}
        for name in names:
            chance = random.Random(f"{n}/{name}")
            if n >= ATTEMPTS - 2 * POINTS:
                found[name] = Fraction(chance.randint(2, 9))
            else:
                size = Fraction(chance.randint(10**11, 95 * 10**10), 10**12)
                size = size if chance.random() < 0.6 else 1 + 3 * size
                found[name] = inexact(-size if chance.random() < 0.3 else size)
        yield Point(found, log_base)


def same_zero_set(one: Node, two: Node, ordered: bool) -> bool:
    """Tell whether two formulas are a constant multiple of each other, so that one is 0 where the
    other is.

    Args:
        one: the difference of an equation's or inequality's sides.
        two: the other's.
        ordered: the multiple must be positive, as for an inequality.
    """
    names = symbols(one, two)
    if not names:
        return False
    ratio, agreed = None, 0
    for point in points(names, None):
        try:
            a, b = point.number(one), point.number(two)
            if a == 0 or b == 0 or not point.real:
                continue
            found = inexact(a) / inexact(b)
            error = 1000 * abs(found / inexact(b)) * noise(point.scale, abs(inexact(b)))
        except Undefined:
            continue
        if ratio is None:
            ratio = found
            if ordered and not (mp.im(ratio) == 0 and mp.re(ratio) > 0):
                return False
        elif abs(found - ratio) > _EXACT * abs(ratio) + error:
            return False
        agreed += 1
        if agreed == POINTS:
            return True
    return agreed >= 2


def solves(variable: Node, solution: Node, equation: Node) -> bool:
    """Tell whether `variable = solution` is a linear equation, solved for one of its variables.

    The factor by which it was divided must not lose solutions: where a variable makes it 0, the
    solution has no value either.

    Args:
        variable: a letter, else the answer is no.
        solution: what it is said to be.
        equation: the difference of the equation's sides.
    """
    if variable.op != "sym" or variable.text in symbols(solution):
        return False
    names = symbols(variable, solution, equation)
    agreed = 0
    for point in points(names, None):
        try:
            slope, found = _line(equation, variable.text, point)
            if slope is None:
                return False
            expected = inexact(point.number(solution))
            if not point.real:
                continue
            error = 1000 * noise(point.scale, abs(slope)) / abs(slope)
            if abs(found - expected) > _EXACT * abs(expected) + error:
                return False
            for name in names:
                if name != variable.text and not _keeps(
                    equation, solution, variable.text, name, point
                ):
                    return False
        except Undefined:
            continue
        agreed += 1
        if agreed == POINTS:
            return True
    return agreed >= 2


def _line(equation: Node, variable: str, point: Point) -> tuple[Value, Value]:
    """Return slope and zero of an equation in a variable at a point; None if it is not linear."""
    heights = []
    start = point.names
    for x in range(3):
        point.names = {**start, variable: Fraction(x)}
        heights.append(inexact(point.number(equation)))
    point.names = start
    slope = heights[1] - heights[0]
    bend = heights[2] - heights[1] - slope
    error = 1000 * noise(point.scale, abs(slope))
    if abs(slope) <= error or abs(bend) > _EXACT * abs(slope) + error:
        return None, None
    return slope, -heights[0] / slope


def _keeps(equation: Node, solution: Node, variable: str, name: str, point: Point) -> bool:
    start = point.names
    try:
        point.names = {**start, name: Fraction(0)}
        slope = _line(equation, variable, point)[0]
        if slope is not None:
            return True
        point.names = {**start, name: Fraction(0)}
        point.number(solution)
    except Undefined:
        return True
    finally:
        point.names = start
    return False
