"""Other forms of a tree that mean the same: elements of lists, signs turned, words as numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from l2s_hpc.evaluation.grading.nodes import Node, is_constant, is_name, number, signs, signs_apart
from l2s_hpc.evaluation.grading.words import MAGNITUDES, SHORT_UNITS

MANY: Final = frozenset({"list", "set"})


def lettered(node: Node) -> Node:
    """Return 5 m as a number with a unit, for where m cannot be a variable."""
    if node.op != "mul" or node.args[0].op not in ("num", "div"):
        return node
    last = node.args[-1].args[0] if node.args[-1].op == "pow" else node.args[-1]
    if last.op == "sym" and last.text in SHORT_UNITS and is_constant(Node("mul", node.args[:-1])):
        return Node("unit", (Node("mul", node.args[:-1]),), last.text)
    return node


def apart(node: Node) -> list[Node]:
    """Return the elements of an answer with each plus-minus sign taken for itself."""
    return [
        choice
        for element in (node.args if node.op in MANY else (node,))
        for choice in signs_apart(element)
    ]


def magnitude(node: Node) -> str:
    """Return the word of magnitude that a unit begins with: 1.5 million dollars."""
    if node.op != "unit":
        return ""
    return next((word for word in MAGNITUDES if node.text.lstrip("$").startswith(word)), "")


def scaled(node: Node) -> Node:
    """Return 1.5 million dollars as 1500000 dollars."""
    word = magnitude(node)
    if not word:
        return node
    value = Node("mul", (node.args[0], number(MAGNITUDES[word])))
    rest = node.text.replace(word, "", 1)
    return Node("unit", (value,), rest) if rest else value


def wording(text: str) -> str:
    """Return the letters and digits of a text, without its articles and the s of plurals."""
    words = _SAME_WORDS.get(text, text).replace("'", "").split()
    told = [word for word in words if word not in ("a", "an", "the")] or words
    return "".join(c for word in told for c in re.sub(r"(?<=\w{3})s$", "", word) if c.isalnum())


_SAME_WORDS: Final = {"dne": "does not exist"}


def without_name(node: Node, other: Node) -> Node:
    """Return the point A(1, 2) as (1, 2), if the other answer is a point."""
    named = node.op == "app" and len(node.args) > 1 and node.text.isupper()
    return Node("seq", node.args, "()") if named and other.op == "seq" else node


def with_rows(node: Node) -> Node | None:
    """Return [[1, 2], [3, 4]] as a matrix; None if it is none."""
    rows = node.args if node.text == "[]" else ()
    if any(
        row.op != "seq" or row.text != "[]" or len(row.args) != len(rows[0].args) for row in rows
    ):
        return None
    return Node("matrix", tuple(Node("row", row.args) for row in rows)) if rows else None


def with_identity(node: Node, other: Node) -> Node:
    """Return -I with the identity matrix in it, if the other answer is a square matrix."""
    if other.op != "matrix" or len(other.args) != len(other.args[0].args) or node.has("matrix"):
        return node
    size = range(len(other.args))
    rows = (Node("row", tuple(number(int(i == j)) for j in size)) for i in size)
    return _replaced(node, Node("sym", text="I"), Node("matrix", tuple(rows)))


def _replaced(node: Node, old: Node, new: Node) -> Node:
    if node == old:
        return new
    return replace(node, args=tuple(_replaced(arg, old, new) for arg in node.args))


def elements(node: Node) -> list[Node]:
    """Return the members of a list or set, nested lists and plus-minus signs spelled out."""
    if node.op in MANY:
        return [element for arg in node.args for element in elements(arg)]
    named = node.op == "rel" and not node.orders and is_name(node.args[0])
    if named and len(node.args) == 2 and node.args[1].op in MANY:
        return elements(node.args[1])
    if node.op == "unit" and node.args[0].op in MANY:
        return elements(node.args[0])
    return signs(node)


def is_named_list(node: Node) -> bool:
    """Tell whether a list is one of named values: x = 1, y = 2."""
    return node.op == "list" and all(
        arg.op == "rel" and arg.text == "=" and is_name(arg.args[0]) for arg in node.args
    )


def systems(node: Node) -> list[Node]:
    """Group x = 1, y = 2, x = 3, y = 4 into its two solutions: a name again begins the next."""
    groups: list[dict[Node, Node]] = [{}]
    for arg in node.args:
        if arg.args[0] in groups[-1]:
            groups.append({})
        groups[-1][arg.args[0]] = arg
    if all(len(group) == 1 for group in groups):
        return elements(node)
    ordered = [sorted(group.values(), key=_name) for group in groups]
    return [Node("row", tuple(group)) for group in ordered]


def _name(relation: Node) -> str:
    return repr(relation.args[0])


def split(relation: Node) -> Node | None:
    """Return (x, y) = (1, 2) as x = 1, y = 2."""
    if len(relation.args) != 2 or relation.text != "=":
        return None
    names, values = relation.args
    if values.op != "seq" or len(names.args) != len(values.args):
        return None
    pairs = zip(names.args, values.args, strict=True)
    return Node("list", tuple(Node("rel", pair, "=") for pair in pairs))


def upwards(node: Node) -> Node:
    """Return a chain with its signs turned to point up."""
    chain = node.text.split()
    if not chain[0].startswith(">"):
        return node
    turned = [sign.replace(">", "<") for sign in reversed(chain)]
    return Node("rel", tuple(reversed(node.args)), " ".join(turned))


def parts(node: Node, op: str) -> list[Node]:
    """Return what a chain of one operation joins."""
    return [part for arg in node.args for part in (parts(arg, op) if arg.op == op else [arg])]


def either(node: Node) -> tuple[Node, ...]:
    """Return the two forms in which an answer is given, or the one."""
    return node.args if node.op == "either" else (node,)


def is_condition(node: Node) -> bool:
    """Tell whether a list is one of inequalities: x > 1 and x < 2."""
    return node.op == "list" and all(arg.orders for arg in node.args)
