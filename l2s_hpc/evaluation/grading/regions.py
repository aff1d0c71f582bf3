"""Sets of real numbers: intervals, finite sets, their unions, and simple inequalities.

A region is the numbers at which something can change and a test of membership. Two regions are the
same if their tests agree at all those numbers, between them and beyond them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mpmath import mp

from l2s_hpc.evaluation.grading.nodes import Node, Undecided, is_name, signs
from l2s_hpc.evaluation.grading.values import Point, Undefined, inexact

_NEAR = mp.mpf(10) ** -60


@dataclass(frozen=True)
class Region:
    """A set of reals: the finite numbers at its edges, and the test of membership."""

    edges: tuple[Any, ...]
    holds: Callable[[Any], bool]


def same_region(one: Region, two: Region) -> bool:
    """Tell whether two regions have the same members."""
    edges: list[Any] = []
    for edge in sorted((*one.edges, *two.edges)):
        if not edges or not _same(edge, edges[-1]):
            edges.append(edge)
    if not edges:
        return one.holds(mp.mpf(0)) == two.holds(mp.mpf(0))
    between = [(a + b) / 2 for a, b in pairwise(edges)]
    probes = [edges[0] - 1, *edges, *between, edges[-1] + 1]
    return all(one.holds(probe) == two.holds(probe) for probe in probes)


def region(node: Node) -> Region:
    """Return the region that a tree describes.

    Raises:
        Undecided: it describes none, or one with variables in it.
    """
    match node.op:
        case "empty":
            return Region((), lambda x: False)
        case "numset" if node.text == "R":
            return Region((), lambda x: True)
        case "seq" if len(node.args) == 2:
            low, high = (_real(arg) for arg in node.args)
            if node.text != "[]" and _same(low, high):
                raise Undecided("a point, or an interval without members")
            return _interval(low, high, node.text[0] == "[", node.text[1] == "]")
        case "set":
            return _finite(node)
        case "cup" | "cap" | "setminus":
            return _combined(node.op, *(region(arg) for arg in node.args))
        case "list" if len(_variables(node)) > 1:
            raise Undecided("conditions on several variables")
        case "list" if node.has("rel") or all(a.op in ("seq", "cup") for a in node.args):
            parts = [region(arg) for arg in node.args]
            total = parts[0]
            for part in parts[1:]:
                total = _combined("cap" if _all_hold(node) else "cup", total, part)
            return total
        case "rel":
            return _relation(node)
    raise Undecided("no set of real numbers")


def _variables(node: Node) -> set[Node]:
    """Return what the conditions in a list are about."""
    sides = [side for arg in node.args if arg.op == "rel" for side in arg.args]
    return {side.args[0] if side.op == "abs" else side for side in sides if _is_variable(side)}


def _all_hold(node: Node) -> bool:
    """Tell whether a list is of conditions that hold together; "x != 2, x != 3" is."""
    excluded = any(arg.op == "rel" and arg.text == "!=" for arg in node.args)
    return node.text == "and" or (excluded and node.text != "or")


def _same(a: Any, b: Any) -> bool:
    if not (mp.isfinite(a) and mp.isfinite(b)):
        return bool(a == b)
    return bool(abs(a - b) <= _NEAR * max(1, abs(a), abs(b)))


def _real(node: Node) -> Any:
    try:
        value = inexact(Point({}).number(node))
    except Undefined as error:
        raise Undecided("an end without a value") from error
    if mp.im(value) != 0 or mp.isnan(value):
        raise Undecided("an end that is not real")
    return mp.re(value)


def _interval(low: Any, high: Any, low_in: bool, high_in: bool) -> Region:
    def holds(x: Any) -> bool:
        if mp.isfinite(low) and _same(x, low):
            return low_in and (high > low or (high_in and _same(low, high)))
        if mp.isfinite(high) and _same(x, high):
            return high_in and high > low
        return bool(low < x < high)

    return Region(tuple(end for end in (low, high) if mp.isfinite(end)), holds)


def _finite(node: Node) -> Region:
    members = [_real(one) for arg in node.args for one in signs(arg)]
    return Region(tuple(members), lambda x: any(_same(x, member) for member in members))


def _combined(op: str, one: Region, two: Region) -> Region:
    tests: dict[str, Callable[[Any], bool]] = {
        "cup": lambda x: one.holds(x) or two.holds(x),
        "cap": lambda x: one.holds(x) and two.holds(x),
        "setminus": lambda x: one.holds(x) and not two.holds(x),
    }
    return Region((*one.edges, *two.edges), tests[op])


def _relation(node: Node) -> Region:
    """Return the region of x < 2, 0 < x <= 1, |x| > 3, x != 0 or x in a set."""
    chain = node.text.split()
    if chain == ["in"] and is_name(node.args[0]):
        return region(node.args[1])
    found: Region | None = None
    for left, sign, right in zip(node.args, chain, node.args[1:], strict=False):
        part = _comparison(left, sign, right)
        found = part if found is None else _combined("cap", found, part)
    if found is None:
        raise Undecided("no set of real numbers")
    return found


_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def _comparison(left: Node, sign: str, right: Node) -> Region:
    if sign not in _MIRRORED:
        raise Undecided("a relation that is no order")
    if not _is_variable(left):
        left, sign, right = right, _MIRRORED[sign], left
    if not _is_variable(left):
        raise Undecided("an inequality that is not solved")
    end = _real(right)
    whole = left.op == "abs"
    edges = (end, -end) if whole else (end,)

    def holds(x: Any) -> bool:
        size = abs(x) if whole else x
        if _same(size, end):
            return sign in ("<=", ">=", "=")
        return bool(
            sign == "!=" or (size < end if sign[0] == "<" else sign[0] == ">" and size > end)
        )

    return Region(tuple(edge for edge in edges if mp.isfinite(edge)), holds)


def _is_variable(node: Node) -> bool:
    return is_name(node) or (node.op == "abs" and is_name(node.args[0]))
