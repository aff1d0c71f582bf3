"""The value of a tree at a point: exact where it can be, else to 150 digits. No text is run.

Rational arithmetic stays exact, so that big integers compare at any size; what would be too big to
write down, or endless, is refused before it is begun.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import mpmath
from mpmath import mp

from l2s_hpc.evaluation.grading.nodes import Node, Undecided

DIGITS: Final = 150
MAX_BITS: Final = 200_000  # of an exact number
MAX_LOG: Final = 10**9  # of the logarithm of an inexact one
MAX_TERMS: Final = 10_000  # of a sum or a product

Value = Any
"""A Fraction, an mpmath number, or a list of rows of them."""


class Undefined(ArithmeticError):
    """There is no value here, as with 1/0."""


@dataclass
class Point:
    """Where a tree is evaluated, and what came to light on the way.

    Attributes:
        names: the values of the variables.
        log_base: what log without a base means: e or 10.
        real: no root, power or logarithm left the real numbers.
        cut: an exact number was too big to write down.
        rough: an integral or an infinite sum was taken numerically.
        scale: the largest number of which a part may have cancelled.
    """

    names: dict[str, Value]
    log_base: int | None = None
    real: bool = True
    cut: bool = False
    rough: bool = False
    scale: Value = field(default_factory=lambda: mp.mpf(0))

    def value(self, node: Node) -> Value:
        """Return the value of a tree.

        Raises:
            Undefined: there is none here.
            Undecided: it is too big or too long, or no rule gives it.
        """
        method = getattr(self, f"_{node.op}", None)
        if method is None:
            raise Undecided(f"no value for {node.op}")
        try:
            return method(node)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
            raise Undefined(str(error)) from error

    def number(self, node: Node) -> Value:
        """Return the value of a tree that must be a number, not a matrix."""
        value = self.value(node)
        if isinstance(value, list):
            raise Undefined("a matrix where a number should be")
        return value

    def _num(self, node: Node) -> Value:
        return node.value

    def _sym(self, node: Node) -> Value:
        if node.text in self.names:
            return self.names[node.text]
        if node.text == "pi":
            return +mp.pi
        if node.text == "e":
            return +mp.e
        if node.text == "i":
            return mp.mpc(0, 1)
        raise Undecided(f"no value for {node.text}")

    def _inf(self, node: Node) -> Value:
        return mp.inf

    def _neg(self, node: Node) -> Value:
        value = self.value(node.args[0])
        return scaled(-1, value) if isinstance(value, list) else -value

    def _add(self, node: Node) -> Value:
        terms = [self.value(arg) for arg in node.args]
        if any(isinstance(term, list) for term in terms):
            return _matrix_sum(terms)
        if all(isinstance(term, Fraction) for term in terms):
            return sum(terms, Fraction(0))
        for term in terms:
            self._grow(term)
        return mp.fsum(inexact(term) for term in terms)

    def _mul(self, node: Node) -> Value:
        product: Value = Fraction(1)
        for arg in node.args:
            product = self.times(product, self.value(arg))
        return product

    def times(self, one: Value, two: Value) -> Value:
        """Return a product, and note if it had to be cut to be written down."""
        product = _times(one, two)
        fractions = isinstance(one, Fraction) and isinstance(two, Fraction)
        self.cut = self.cut or (fractions and not isinstance(product, Fraction))
        return product

    def _div(self, node: Node) -> Value:
        above, below = self.value(node.args[0]), self.number(node.args[1])
        if below == 0:
            raise Undefined("division by zero")
        if isinstance(below, Fraction):
            return self.times(above, 1 / below)
        return self.times(above, 1 / inexact(below))

    def _percent(self, node: Node) -> Value:
        return self.number(node.args[0]) / 100

    def _unit(self, node: Node) -> Value:
        if node.text != "deg":
            raise Undecided(f"a unit inside a formula: {node.text}"[:60])
        return inexact(self.number(node.args[0])) * mp.pi / 180

    def _abs(self, node: Node) -> Value:
        return abs(self.number(node.args[0]))

    def _pow(self, node: Node) -> Value:
        if node.args[0] == Node("sym", text="e") and "e" not in self.names:
            return self._exp(self.number(node.args[1]))
        base = self.value(node.args[0])
        exponent = self.number(node.args[1])
        if isinstance(base, list):
            return matrix_power(base, exponent)
        return self.power(base, exponent)

    def power(self, base: Value, exponent: Value) -> Value:
        """Return a power, exact if it can be; the principal value of a root of a negative."""
        if base == 0:
            if mp.re(inexact(exponent)) <= 0 and exponent != 0:
                raise Undefined("a negative power of zero")
            return Fraction(int(exponent == 0))
        whole = isinstance(exponent, Fraction) and exponent.denominator == 1
        if whole and isinstance(base, Fraction):
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if bits * abs(exponent) <= MAX_BITS:
                return base ** int(exponent)
            self.cut = True
        fractions = isinstance(base, Fraction) and isinstance(exponent, Fraction)
        if fractions and not self.names and base < 0 and not whole and exponent.denominator % 2:
            # Of a plain negative number, the real root is meant.
            root = self.power(-base, exponent)
            return -root if exponent.numerator % 2 else root
        base = inexact(base)
        if not whole and mp.im(base) == 0 and mp.re(base) < 0:
            self.real = False
        if abs(inexact(exponent) * mp.log(base)) > MAX_LOG:
            raise Undecided("a power too large")
        return mp.power(base, int(exponent) if whole else inexact(exponent))

    def _exp(self, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and exponent == 0:
            return Fraction(1)
        exponent = inexact(exponent)
        if exponent == -mp.inf:
            return Fraction(0)
        if abs(exponent) > MAX_LOG:
            raise Undecided("a power too large")
        self._grow(exponent)
        return mp.exp(exponent)

    def _fn(self, node: Node) -> Value:
        from l2s_hpc.evaluation.grading.functions import call

        return call(self, node)

    def _app(self, node: Node) -> Value:
        """Give an unknown function some value that depends on its name and arguments alone."""
        shown = [mpmath.nstr(inexact(self.number(arg)), 40) for arg in node.args]
        return mp.mpf(random.Random(f"{node.text}({shown})").uniform(0.3, 2.0))

    def _matrix(self, node: Node) -> Value:
        return [[self.number(cell) for cell in row.args] for row in node.args]

    def _sum(self, node: Node) -> Value:
        return self._series(node, Fraction(0), lambda one, two: one + two)

    def _prod(self, node: Node) -> Value:
        return self._series(node, Fraction(1), self.times)

    def _series(self, node: Node, total: Value, join: Any) -> Value:
        name, body = node.args[0].text, node.args[3]
        start, stop = self.number(node.args[1]), self.number(node.args[2])
        outer = self.names
        try:
            if stop == mp.inf:
                self.rough = True
                with mp.workdps(30):
                    return (mp.nsum if node.op == "sum" else mp.nprod)(
                        lambda k: self._bound(outer, name, k, body), [inexact(start), mp.inf]
                    )
            if start != int(start) or stop != int(stop):
                raise Undefined("a sum up to no integer")
            if stop - start > MAX_TERMS:
                raise Undecided("a sum with too many terms")
            for k in range(int(start), int(stop) + 1):
                self.names = {**outer, name: Fraction(k)}
                total = join(total, self.number(body))
                self._grow(total)
            return total
        finally:
            self.names = outer

    def _int(self, node: Node) -> Value:
        from l2s_hpc.evaluation.grading.calculus import antiderivative

        name, body = node.args[0].text, node.args[1]
        if len(node.args) == 2:
            return antiderivative(self, node)
        ends = [inexact(self.number(end)) for end in node.args[2:]]
        outer, self.rough = self.names, True
        try:
            with mp.workdps(30):
                found = mp.quad(lambda x: self._bound(outer, name, x, body), ends)
        finally:
            self.names = outer
        return found

    def _bound(self, outer: dict[str, Value], name: str, value: Value, body: Node) -> Value:
        self.names = {**outer, name: value}
        return inexact(self.number(body))

    def _lim(self, node: Node) -> Value:
        from l2s_hpc.evaluation.grading.calculus import limit

        return limit(self, node)

    def _deriv(self, node: Node) -> Value:
        from l2s_hpc.evaluation.grading.calculus import derivative

        return derivative(self, node)

    def _grow(self, value: Value) -> None:
        """Note a number of which a part may cancel."""
        size = abs(inexact(value))
        if mp.isfinite(size) and size > self.scale:
            self.scale = size

    def note(self, value: Value) -> Value:
        """Note the argument of a function, whose rounding moves the result; return it inexact."""
        found = inexact(value)
        if mp.isfinite(found) and abs(found) > mp.mpf(10) ** 40:
            raise Undecided("an argument too large")
        self._grow(found)
        self._grow(1)
        return found


def inexact(value: Value) -> Value:
    """Return a number as mpmath has it."""
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / value.denominator
    return value


def is_whole(value: Value) -> bool:
    """Tell whether a value is an exact integer."""
    return isinstance(value, Fraction) and value.denominator == 1


def _times(one: Value, two: Value) -> Value:
    if isinstance(one, list) and isinstance(two, list):
        return matrix_product(one, two)
    if isinstance(one, list) or isinstance(two, list):
        return scaled(two, one) if isinstance(one, list) else scaled(one, two)
    if isinstance(one, Fraction) and isinstance(two, Fraction):
        product = one * two
        if max(product.numerator.bit_length(), product.denominator.bit_length()) <= MAX_BITS:
            return product
    return inexact(one) * inexact(two)


def scaled(factor: Value, matrix: list[list[Value]]) -> Value:
    """Return a number times a matrix."""
    return [[_times(_exact(factor), cell) for cell in row] for row in matrix]


def _exact(factor: Value) -> Value:
    return Fraction(factor) if isinstance(factor, int) else factor


def _plus(one: Value, two: Value) -> Value:
    if isinstance(one, Fraction) and isinstance(two, Fraction):
        return one + two
    return inexact(one) + inexact(two)


def _matrix_sum(terms: list[Value]) -> Value:
    total = terms[0]
    for term in terms[1:]:
        if (
            not isinstance(term, list)
            or not isinstance(total, list)
            or _shape(term) != _shape(total)
        ):
            raise Undefined("a sum of matrices of different shapes")
        total = [
            [_plus(a, b) for a, b in zip(one, two, strict=True)]
            for one, two in zip(total, term, strict=True)
        ]
    return total


def _shape(matrix: list[list[Value]]) -> tuple[int, int]:
    return len(matrix), len(matrix[0])


def matrix_product(one: list[list[Value]], two: list[list[Value]]) -> Value:
    """Return the product of two matrices."""
    if len(one[0]) != len(two):
        raise Undefined("a product of matrices that do not fit")
    columns = list(zip(*two, strict=True))
    product = []
    for row in one:
        cells = []
        for column in columns:
            total: Value = Fraction(0)
            for a, b in zip(row, column, strict=True):
                total = _plus(total, _times(a, b))
            cells.append(total)
        product.append(cells)
    return product


def matrix_power(matrix: list[list[Value]], exponent: Value) -> Value:
    """Return a small whole power of a matrix; -1 is its inverse."""
    size = len(matrix)
    if size != len(matrix[0]) or not is_whole(exponent) or abs(exponent) > 64 or size > 8:
        raise Undecided("a power of a matrix")
    if exponent < 0:
        inverse = mp.matrix([[inexact(cell) for cell in row] for row in matrix]) ** -1
        matrix = [[inverse[i, j] for j in range(size)] for i in range(size)]
    result = [[Fraction(int(i == j)) for j in range(size)] for i in range(size)]
    for _ in range(abs(int(exponent))):
        result = matrix_product(result, matrix)
    return result


def root_of(value: Fraction, degree: int) -> Fraction | None:
    """Return the exact positive root of a positive fraction, if it is one."""
    above, below = _whole_root(value.numerator, degree), _whole_root(value.denominator, degree)
    return None if above is None or below is None else Fraction(above, below)


def _whole_root(value: int, degree: int) -> int | None:
    if degree == 2:
        found = math.isqrt(value)
    elif value.bit_length() < 50:
        found = round(value ** (1 / degree))
    else:
        return None
    return found if found**degree == value else None
