r"""The fourth rung: answers of several parts, compared part by part.

Points and intervals are ordered and keep their brackets; lists and sets are unordered; `x = 2` is
2, as x is only a name. Single elements go to the comparison of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from l2s_hpc.evaluation.grading.equality import equal, same_zero_set, solves
from l2s_hpc.evaluation.grading.forms import (
    MANY,
    apart,
    either,
    elements,
    is_condition,
    is_named_list,
    lettered,
    magnitude,
    parts,
    scaled,
    split,
    systems,
    upwards,
    with_identity,
    with_rows,
    without_name,
    wording,
)
from l2s_hpc.evaluation.grading.nodes import (
    Node,
    Undecided,
    difference,
    is_constant,
    is_name,
    number,
    signs_of,
    without_domain,
)
from l2s_hpc.evaluation.grading.regions import region, same_region
from l2s_hpc.evaluation.grading.words import NUMBER_WORDS

MAX_ELEMENTS: Final = 64
_REGIONS = frozenset({"cup", "cap", "setminus", "empty", "numset"})


def same(gold: Node, answer: Node) -> bool:
    """Tell whether two trees are the same answer.

    Raises:
        Undecided: the rules cannot tell.
    """
    gold, answer = without_domain(gold), without_domain(answer)
    if gold == answer:
        return True
    gold, answer = without_name(gold, answer), without_name(answer, gold)
    gold, answer = with_identity(gold, answer), with_identity(answer, gold)
    if "either" in (gold.op, answer.op):
        return any(same(one, two) for one in either(gold) for two in either(answer))
    if gold.op == "unit" or answer.op == "unit":
        return _same_units(gold, answer)
    if gold.op == "percent" or answer.op == "percent":
        return _same_percent(gold, answer)
    if gold.has("pm") or answer.has("pm"):
        return _same_signs(gold, answer)
    if "text" in (gold.op, answer.op):
        return _same_words(gold, answer)
    for rule in (_as_relations, _as_regions, _as_collections, _as_sequences):
        decided = rule(gold, answer)
        if decided is not None:
            return decided
    plain = lettered(answer) if is_constant(gold) else answer
    return equal(gold, plain.args[0] if plain.op == "unit" else answer)


def _same_signs(gold: Node, answer: Node) -> bool:
    """Compare answers with plus-minus signs: they go together, or each for itself."""
    together = _same_many(elements(gold), elements(answer))
    if together or max(signs_of(gold), signs_of(answer)) < 2:
        return together
    return any(
        _same_many(one, two)
        for one in (elements(gold), apart(gold))
        for two in (elements(answer), apart(answer))
    )


def _same_units(gold: Node, answer: Node) -> bool:
    """A unit on one side only is left out; two different ones differ."""
    if "list" not in (gold.op, answer.op):
        gold, answer = (node if node.op == "unit" else lettered(node) for node in (gold, answer))
    if any(magnitude(node) for node in (gold, answer)):
        one, two = scaled(gold), scaled(answer)
        if (one, two) != (gold, answer) and same(one, two):
            return True
    units = [node.text for node in (gold, answer) if node.op == "unit"]
    if len(units) == 2 and units[0] != units[1]:
        if set(units) == {"deg", "rad"}:
            return equal(_in_radians(gold), _in_radians(answer))
        return False
    if len(units) == 1 and "deg" in units and equal_or_not(gold, answer):
        return True
    return same(*(node.args[0] if node.op == "unit" else node for node in (gold, answer)))


def equal_or_not(gold: Node, answer: Node) -> bool:
    """Tell whether two elements are equal; False also where that cannot be told."""
    try:
        return equal(gold, answer)
    except Undecided:
        return False


def _in_radians(node: Node) -> Node:
    return node.args[0] if node.text == "rad" else node


def _same_percent(gold: Node, answer: Node) -> bool:
    if gold.op == answer.op:
        return same(gold.args[0], answer.args[0])
    signed, bare = (gold, answer) if gold.op == "percent" else (answer, gold)
    if bare.op == "rel" or bare.op in MANY:
        return bool(_as_relations(gold, answer) or _as_collections(gold, answer))
    hundredth = Node("div", (signed.args[0], number(100)))
    return same(signed.args[0], bare) or same(hundredth, bare)


def _same_words(gold: Node, answer: Node) -> bool:
    if gold.op == answer.op == "text":
        return wording(gold.text) == wording(answer.text)
    if "rel" in (gold.op, answer.op):
        return bool(_as_relations(gold, answer))
    words, other = (gold, answer) if gold.op == "text" else (answer, gold)
    if words.text in NUMBER_WORDS:
        return other.op != "text" and same(number(NUMBER_WORDS[words.text]), other)
    if words.text in _NOTHING:
        return other.op == "empty"
    if words.text == "infinity":
        return other.op == "inf"
    return words.text in _EVERYTHING and other.op not in ("text", "rel") and same(_REALS, other)


_NOTHING = frozenset({"no solution", "no solutions", "no real solution", "no real solutions"})
_EVERYTHING = frozenset({"all real numbers", "all reals", "all real"})
_REALS = Node("numset", text="R")


# Relations


def _as_relations(gold: Node, answer: Node) -> bool | None:
    if gold.op != "rel" and answer.op != "rel":
        return None
    if gold.op == answer.op:
        return _same_relations(gold, answer)
    relation, other = (gold, answer) if gold.op == "rel" else (answer, gold)
    if other.op == "list" and is_named_list(other) and relation.args[0].op == "seq":
        pairs = split(relation)
        return pairs is not None and same(pairs, other)
    if relation.orders:
        return _same_regions_if_any(gold, answer)
    if other.op == "list" and any(element.op == "rel" for element in other.args):
        return same(Node("list", (relation,)), other)
    return any(same(value, other) for value in _values(relation))


def _same_relations(gold: Node, answer: Node) -> bool:
    if gold.orders and answer.orders:
        return _same_orders(gold, answer)
    if gold.orders or answer.orders:
        return _same_regions_if_any(gold, answer)
    names = [node.args[0] if is_name(node.args[0]) else None for node in (gold, answer)]
    if all(names) and (names[0] == names[1] or _same_role(names[0], names[1])):
        return any(same(a, b) for a in _values(gold) for b in _values(answer))
    if names == [None, None] and all(_values(node) for node in (gold, answer)):
        return any(same(a, b) for a in _values(gold) for b in _values(answer))
    if gold.text == answer.text == "=" and _are_numbers(gold, answer):
        one, two = difference(*gold.args), difference(*answer.args)
        if same_zero_set(one, two, ordered=False):
            return True
        return any(
            solves(variable, solution, equation)
            for (left, right), equation in ((gold.args, two), (answer.args, one))
            for variable, solution in ((left, right), (right, left))
        )
    return False


def _are_numbers(*relations: Node) -> bool:
    return not any(
        arg.has("seq", "list", "set", "text", "matrix") for r in relations for arg in r.args
    )


def _same_role(one: Node | None, two: Node | None) -> bool:
    """Tell whether names may differ: y and f(x), a word and anything."""
    ops = {node.op for node in (one, two) if node is not None}
    if "text" in ops:
        return True
    function = next((n for n in (one, two) if n is not None and n.op == "app"), None)
    letter = next((n for n in (one, two) if n is not None and n.op == "sym"), None)
    return function is not None and letter is not None and letter.text in ("y", function.text)


def _values(relation: Node) -> list[Node]:
    """Return what a chain of equal signs says its value is; nothing for a real equation."""
    sides, chain = list(relation.args), relation.text.split()
    if is_name(sides[0]):
        return sides[1:] if "~" in chain else [sides[-1]]
    if not all(is_constant(side) for side in sides):
        if chain == ["~"]:
            return sides[:1]
        identity = set(chain) == {"="} and all(equal_or_not(sides[0], side) for side in sides[1:])
        return [sides[-1]] if identity else []
    if "~" in chain:
        return sides
    first = all(same(sides[0], side) for side in sides[1:]) and "in" not in chain
    return [sides[-1]] if first else []


def _same_orders(gold: Node, answer: Node) -> bool:
    if len(gold.args) == len(answer.args) == 2 and _are_numbers(gold, answer):
        one, two = upwards(gold), upwards(answer)
        if one.text == two.text:
            both = difference(*one.args), difference(*two.args)
            if same_zero_set(*both, ordered=one.text != "!="):
                return True
    if len(gold.args) == len(answer.args) == 3:
        one, two = upwards(gold), upwards(answer)
        if one.text == two.text and all(map(equal_or_not, one.args, two.args)):
            return True
    return _same_regions_if_any(gold, answer)


# Sets of real numbers


def _as_regions(gold: Node, answer: Node) -> bool | None:
    if gold.op == "list" and answer.op == "list":
        return None
    if not any(node.has(*_REGIONS) or is_condition(node) for node in (gold, answer)):
        return None
    return _same_regions_if_any(gold, answer)


def _same_regions_if_any(gold: Node, answer: Node) -> bool:
    """Compare as sets of reals; where there are variables in them, part by part."""
    try:
        return same_region(region(gold), region(answer))
    except Undecided:
        if gold.op == answer.op and gold.op in _REGIONS and gold.args and answer.args:
            ours, theirs = parts(gold, gold.op), parts(answer, answer.op)
            if gold.op == "setminus":
                return _same_in_order(ours, theirs)
            return _same_many(ours, theirs)
        raise


# Lists, sets, points, matrices


def _as_collections(gold: Node, answer: Node) -> bool | None:
    kinds = (gold.op, answer.op)
    if not MANY.intersection(kinds):
        return None
    if "seq" in kinds or "matrix" in kinds:
        return _list_as_point(gold, answer)
    if all(is_named_list(node) for node in (gold, answer)):
        return _same_many(systems(gold), systems(answer))
    return _same_many(elements(gold), elements(answer))


def _list_as_point(gold: Node, answer: Node) -> bool:
    """A bare list in the order of a point is that point; a set is not. One point may be a set."""
    many, one = (gold, answer) if gold.op in MANY else (answer, gold)
    members = elements(many)
    if len(members) == 1:
        return same(members[0], one)
    bracketed = one.text == "()" or len(one.args) > 2  # [1, 2] is an interval, [1, 2, 3] is none
    if many.op == "set" or one.op != "seq" or not bracketed or many.has("seq"):
        return False
    return _same_in_order(list(many.args), list(one.args))


def _as_sequences(gold: Node, answer: Node) -> bool | None:
    ops = {gold.op, answer.op}
    if "row" in ops:
        return gold.op == answer.op and _same_in_order(list(gold.args), list(answer.args))
    if ops == {"seq"}:
        return gold.text == answer.text and _same_in_order(list(gold.args), list(answer.args))
    if ops == {"seq", "matrix"}:
        matrix, point = (gold, answer) if gold.op == "matrix" else (answer, gold)
        if rows := with_rows(point):
            return same(matrix, rows)
        cells = [cell for row in matrix.args for cell in row.args]
        vector = len(matrix.args) == 1 or len(matrix.args[0].args) == 1
        return vector and point.text == "()" and _same_in_order(cells, list(point.args))
    if ops == {"matrix"}:
        return _same_in_order(list(gold.args), list(answer.args))
    if "seq" in ops:
        return False
    return None


def _same_in_order(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    if len(gold) != len(answer):
        return False
    return all(same(a, b) for a, b in zip(gold, answer, strict=True))


def _same_many(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    """Tell whether each element is in the other collection too; copies do not count."""
    gold, answer = list(dict.fromkeys(gold)), list(dict.fromkeys(answer))
    if max(len(gold), len(answer)) > MAX_ELEMENTS:
        raise Undecided(f"more than {MAX_ELEMENTS} elements")
    if not gold or not answer:
        return not gold and not answer
    return _covered(gold, answer) and _covered(answer, gold)


def _covered(these: Sequence[Node], those: Sequence[Node]) -> bool:
    for one in these:
        unclear: Undecided | None = None
        for other in those:
            try:
                if same(one, other):
                    break
            except Undecided as error:
                unclear = error
        else:
            if unclear:
                raise unclear
            return False
    return True
