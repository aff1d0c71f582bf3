"""What the reader makes of an answer: a tree of nodes, and nothing that can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

ORDERS: Final = frozenset({"<", ">", "<=", ">=", "!="})


class Undecided(Exception):
    """The rules cannot tell; the message says why."""


class Unreadable(Undecided):
    """The text is no mathematics that the reader knows."""


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of mathematics.

    Attributes:
        op: what it is: num, sym, text, add, mul, div, neg, pow, fn, app, seq, set, list, rel, ...
        args: its parts.
        text: a name, the brackets of a seq, the signs of a rel, a unit.
        value: the value of a num.
    """

    op: str
    args: tuple[Node, ...] = ()
    text: str = ""
    value: Fraction | None = None

    @property
    def orders(self) -> bool:
        """It is a relation with a sign of order, or an inequality."""
        return self.op == "rel" and not ORDERS.isdisjoint(self.text.split())

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += node.args

    def has(self, *ops: str) -> bool:
        """Tell whether a node of these kinds is in the tree."""
        return any(node.op in ops for node in self.walk())


CONSTANTS: Final = frozenset({"e", "i", "pi"})


def symbols(*nodes: Node) -> list[str]:
    """Return the names of the variables, sorted; bound ones too, which does no harm."""
    found = {n.text for node in nodes for n in node.walk() if n.op == "sym"}
    return sorted(found - CONSTANTS)


def is_constant(node: Node) -> bool:
    """Tell whether there is no variable in a tree."""
    return not symbols(node) and not node.has("app", "text")


def number(value: int | Fraction) -> Node:
    """Return the node of an exact number."""
    return Node("num", value=Fraction(value))


def negative(node: Node) -> Node:
    """Return minus a node."""
    return Node("neg", (node,))


def difference(one: Node, two: Node) -> Node:
    """Return one minus two."""
    return Node("add", (one, negative(two)))


def signs(node: Node) -> list[Node]:
    """Return what a node with plus-minus signs stands for: two nodes, or itself."""
    if not node.has("pm"):
        return [node]
    return [_signed(node, upper) for upper in (True, False)]


def signs_of(node: Node) -> int:
    """Return how many plus-minus signs are in a tree."""
    return sum(n.op == "pm" for n in node.walk())


def signs_apart(node: Node) -> list[Node]:
    """Return what a node stands for if each of its plus-minus signs may be either.

    Raises:
        Undecided: there are more than four of them.
    """
    found: list[Node] = [node]
    for _ in range(signs_of(node)):
        found = [
            each for one in found for each in (_first_signed(one, True), _first_signed(one, False))
        ]
        if len(found) > 16:
            raise Undecided("more than four plus-minus signs")
    return found


def _first_signed(node: Node, upper: bool) -> Node:
    if node.op == "pm":
        return (
            _signed(Node("pm", node.args[:1], node.text), upper)
            if not node.args[0].has("pm")
            else (replace(node, args=(_first_signed(node.args[0], upper),)))
        )
    args = list(node.args)
    for n, arg in enumerate(args):
        if arg.has("pm"):
            args[n] = _first_signed(arg, upper)
            break
    return replace(node, args=tuple(args))


def _signed(node: Node, upper: bool) -> Node:
    args = tuple(_signed(arg, upper) for arg in node.args)
    if node.op != "pm":
        return replace(node, args=args)
    return args[0] if upper == (node.text == "+") else negative(args[0])


def without_domain(node: Node) -> Node:
    """Return a list without remarks such as "k in Z" on a variable of its other elements."""
    if node.op != "list":
        return node
    kept = tuple(arg for arg in node.args if not _is_domain(arg))
    if len(kept) == len(node.args) or not kept:
        return node
    return kept[0] if len(kept) == 1 else replace(node, args=kept)


def _is_domain(node: Node) -> bool:
    return node.op == "rel" and node.text == "in" and node.args[1].op == "numset"


def is_name(node: Node) -> bool:
    """Tell whether a left side only names its right side: x, f(x), AB, NO/BO, (p, q), a word."""
    if node.op in ("sym", "text"):
        return True
    if node.op == "app":
        return not any(n.op == "rel" for n in node.args)
    if node.op == "seq":
        return all(is_name(arg) for arg in node.args)
    if node.op == "mul" and node.args[0] == Node("sym", text="m"):
        return len(node.args) == 2 and node.args[1].text.startswith("angle ")
    if node.op == "div" and node.text == ":":
        return all(is_name(arg) for arg in node.args)
    if node.op == "div" and all(_is_differential(arg) for arg in node.args):
        return True
    if node.op in ("div", "abs", "fn") and (node.op != "fn" or node.text in ("angle", "det")):
        return all(_is_segment(arg) or is_name(arg) for arg in node.args) and (
            node.op != "div" or all(_is_segment(arg) for arg in node.args)
        )
    return _is_segment(node)


def _is_differential(node: Node) -> bool:
    return node.op == "mul" and len(node.args) == 2 and node.args[0] == Node("sym", text="d")


def _is_segment(node: Node) -> bool:
    """Two or more capital letters: a segment or a triangle of geometry."""
    return node.op == "mul" and all(a.op == "sym" and a.text[:1].isupper() for a in node.args)
