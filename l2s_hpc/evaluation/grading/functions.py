"""The functions that a tree may call, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from mpmath import mp

from l2s_hpc.evaluation.grading.nodes import Node, Undecided
from l2s_hpc.evaluation.grading.values import Point, Undefined, Value, inexact, is_whole, root_of

_PLAIN: Final[dict[str, Callable[..., Value]]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc,
    "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "coth": mp.coth, "sech": mp.sech,
    "csch": mp.csch, "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot,
    "arcsec": mp.asec, "arccsc": mp.acsc, "arcsinh": mp.asinh, "arccosh": mp.acosh,
    "arctanh": mp.atanh, "cis": mp.expj, "Re": mp.re, "Im": mp.im, "arg": mp.arg,
}  # fmt: skip
_REAL_TO_COMPLEX = frozenset({"arcsin", "arccos", "arcsec", "arccsc", "arccosh", "arctanh"})
_MAX_FACTORIAL: Final = 3000


def call(point: Point, node: Node) -> Value:
    """Return the value of a function's node at a point."""
    name = node.text
    if name in _PLAIN:
        if len(node.args) != 1:
            raise Undefined(f"{name} of several arguments")
        argument = point.note(point.number(node.args[0]))
        value = _PLAIN[name](argument)
        if name in _REAL_TO_COMPLEX and mp.im(argument) == 0 and mp.im(value) != 0:
            point.real = False
        return value
    if name not in _RULES:
        raise Undecided(f"no value for {name}")
    return _RULES[name](point, node)


def _root(point: Point, node: Node) -> Value:
    value = point.number(node.args[0])
    degree = point.number(node.args[1]) if len(node.args) > 1 else Fraction(2)
    if not is_whole(degree):
        return point.power(value, 1 / degree)
    if degree < 1 or degree > 1000:
        raise Undecided("a root of this degree")
    if isinstance(value, Fraction):
        odd = value < 0 and degree % 2 == 1
        found = root_of(abs(value), int(degree)) if value >= 0 or odd else None
        if found is not None:
            return -found if odd else found
    number = inexact(value)
    if mp.im(number) == 0 and mp.re(number) < 0 and degree % 2 == 1:
        if not point.names:
            return -mp.root(-number, int(degree))  # a plain number: the real root is meant
        point.real = False
    return point.power(value, 1 / degree)


def _log(point: Point, node: Node) -> Value:
    """Return a logarithm; without a base, in the base that the point says."""
    value = point.note(point.number(node.args[0]))
    if value == 0:
        raise Undefined("the logarithm of zero")
    if mp.im(value) == 0 and mp.re(value) < 0:
        point.real = False
    if node.text == "ln":
        base = None
    elif len(node.args) > 1:
        base = inexact(point.number(node.args[1]))
    else:
        base = 10 if node.text == "lg" else point.log_base
    return mp.log(value) if base is None else mp.log(value) / mp.log(base)


def _exponential(point: Point, node: Node) -> Value:
    return point.value(Node("pow", (Node("sym", text="e"), node.args[0])))


def _factorial(point: Point, node: Node) -> Value:
    value = point.number(node.args[0])
    if is_whole(value) and value < 0:
        raise Undefined("a factorial of a negative number")
    if is_whole(value) and value <= _MAX_FACTORIAL:
        return Fraction(math.factorial(int(value)))
    if abs(inexact(value)) > 10**15:
        raise Undecided("a factorial too large")
    point.cut = point.cut or is_whole(value)
    return mp.factorial(inexact(value))


def _double_factorial(point: Point, node: Node) -> Value:
    value = point.number(node.args[0])
    if not is_whole(value) or not 0 <= value <= _MAX_FACTORIAL:
        raise Undecided("a double factorial of this number")
    return Fraction(math.prod(range(int(value), 0, -2)))


def _binomial(point: Point, node: Node) -> Value:
    above, below = (point.number(arg) for arg in node.args)
    if is_whole(above) and is_whole(below) and 0 <= above <= _MAX_FACTORIAL:
        return Fraction(math.comb(int(above), int(below)) if below >= 0 else 0)
    if max(abs(inexact(above)), abs(inexact(below))) > 10**15:
        raise Undecided("a binomial too large")
    point.cut = point.cut or (is_whole(above) and is_whole(below))
    return mp.binomial(inexact(above), inexact(below))


def _extreme(point: Point, node: Node) -> Value:
    values = [point.number(arg) for arg in node.args]
    if any(mp.im(inexact(value)) != 0 for value in values):
        raise Undefined("complex numbers have no order")
    return max(values) if node.text == "max" else min(values)


def _divisors(point: Point, node: Node) -> Value:
    values = [point.number(arg) for arg in node.args]
    if not all(map(is_whole, values)):
        raise Undecided(f"{node.text} of something else than integers")
    whole = [int(value) for value in values]
    return Fraction(math.gcd(*whole) if node.text == "gcd" else math.lcm(*whole))


def _rounded(point: Point, node: Node) -> Value:
    value = point.number(node.args[0])
    if isinstance(value, Fraction):
        return Fraction(math.floor(value) if node.text == "floor" else math.ceil(value))
    return (mp.floor if node.text == "floor" else mp.ceil)(point.note(value))


def _remainder(point: Point, node: Node) -> Value:
    one, two = (point.number(arg) for arg in node.args)
    if not is_whole(one) or not is_whole(two):
        raise Undecided("a remainder of something else than integers")
    return one % two


def _determinant(point: Point, node: Node) -> Value:
    matrix = point.value(node.args[0])
    if not isinstance(matrix, list) or len(matrix) != len(matrix[0]) or len(matrix) > 8:
        raise Undefined("a determinant of something else than a square matrix")
    point.note(1)
    return mp.det(mp.matrix([[inexact(cell) for cell in row] for row in matrix]))


def _transposed(point: Point, node: Node) -> Value:
    matrix = point.value(node.args[0])
    if not isinstance(matrix, list):
        raise Undefined("a number has no transpose")
    return [list(row) for row in zip(*matrix, strict=True)]


def _trace(point: Point, node: Node) -> Value:
    matrix = point.value(node.args[0])
    if not isinstance(matrix, list) or len(matrix) != len(matrix[0]):
        raise Undefined("a trace of something else than a square matrix")
    return mp.fsum(inexact(row[i]) for i, row in enumerate(matrix))


def _sign(point: Point, node: Node) -> Value:
    return mp.sign(inexact(point.number(node.args[0])))


def _absolute(point: Point, node: Node) -> Value:
    return abs(point.number(node.args[0]))


def _marked(point: Point, node: Node) -> Value:
    """Give an angle or a difference its own value, by the names that it is made of."""
    return point.value(Node("app", node.args, node.text))


_RULES: Final[dict[str, Callable[[Point, Node], Value]]] = {
    "root": _root, "sqrt": _root, "log": _log, "ln": _log, "lg": _log, "exp": _exponential,
    "factorial": _factorial, "double factorial": _double_factorial, "binom": _binomial,
    "max": _extreme, "min": _extreme, "gcd": _divisors, "lcm": _divisors, "floor": _rounded,
    "ceil": _rounded, "mod": _remainder,
    "det": _determinant, "transpose": _transposed, "tr": _trace, "sgn": _sign, "abs": _absolute,
    "angle": _marked,
}  # fmt: skip
