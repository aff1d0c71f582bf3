"""Limits, derivatives and antiderivatives, by sympy.

A tree is turned into sympy's own objects, piece by piece; no text of an answer reaches sympy, and
the variables have names of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import sympy
from mpmath import mp

from l2s_hpc.evaluation.grading.nodes import CONSTANTS, Node, Undecided, symbols
from l2s_hpc.evaluation.grading.values import Point, Undefined, Value, inexact

_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec,
    "csc": sympy.csc, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
    "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh, "ln": sympy.log, "log": sympy.log,
    "exp": sympy.exp, "factorial": sympy.factorial, "root": sympy.root,
}  # fmt: skip
_CONSTANTS: Final[dict[str, Any]] = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}


def limit(point: Point, node: Node) -> Value:
    """Return the value of a limit at a point."""
    return _at(point, _solved(node))


def derivative(point: Point, node: Node) -> Value:
    """Return the value of a derivative at a point."""
    return _at(point, _solved(node))


def antiderivative(point: Point, node: Node) -> Value:
    """Return the value at a point of the antiderivative that sympy finds."""
    return _at(point, _solved(node))


@lru_cache(maxsize=64)
def _solved(node: Node) -> tuple[Any, tuple[tuple[str, Any], ...]]:
    """Return sympy's result, and its variable for each of our names."""
    names = {
        name: sympy.Symbol(f"v{n}", real=True)
        for n, name in enumerate(symbols(node))
        if name not in CONSTANTS
    }
    variable = names.get(node.args[0].text)
    if variable is None:
        raise Undecided("a constant as a variable")
    if node.op == "lim":
        target, body = (_built(arg, names) for arg in node.args[1:])
        found = sympy.limit(body, variable, target, node.text or "+-")
    elif node.op == "deriv":
        found = sympy.diff(_built(node.args[1], names), variable)
    else:
        found = sympy.integrate(_built(node.args[1], names), variable)
    if found.has(sympy.Integral, sympy.Limit, sympy.Derivative):
        raise Undecided("sympy finds no closed form")
    return found, tuple(names.items())


def _at(point: Point, solved: tuple[Any, tuple[tuple[str, Any], ...]]) -> Value:
    expression, names = solved
    point.rough = True
    found = expression.evalf(
        40,
        subs={
            variable: sympy.Float(mp.nstr(mp.re(inexact(point.names[name])), 60), 60)
            for name, variable in names
            if name in point.names
        },
    )
    if found in (sympy.oo, -sympy.oo):
        return mp.inf if found == sympy.oo else -mp.inf
    if not found.is_number or found.has(sympy.nan, sympy.zoo):
        raise Undefined("sympy finds no value")
    real, imaginary = found.as_real_imag()
    value = mp.mpf(real._to_mpmath(mp.prec)) if real else mp.mpf(0)
    return mp.mpc(value, imaginary._to_mpmath(mp.prec)) if imaginary else value


def _built(node: Node, names: dict[str, Any]) -> Any:
    """Return a tree as a sympy object."""
    if node.op == "num" and node.value is not None:
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.op == "sym":
        return _CONSTANTS[node.text] if node.text in CONSTANTS else names[node.text]
    if node.op == "inf":
        return sympy.oo
    args = [_built(arg, names) for arg in node.args]
    match node.op:
        case "add":
            return sympy.Add(*args)
        case "mul":
            return sympy.Mul(*args)
        case "neg":
            return -args[0]
        case "div":
            return args[0] / args[1]
        case "pow":
            return sympy.Pow(*args)
        case "abs":
            return sympy.Abs(args[0])
        case "fn" if node.text in _FUNCTIONS:
            return _root(args) if node.text == "root" else _FUNCTIONS[node.text](*args)
    raise Undecided(f"no rule for {node.op} {node.text}".strip())


def _root(args: list[Any]) -> Any:
    return sympy.root(args[0], args[1] if len(args) > 1 else 2)
