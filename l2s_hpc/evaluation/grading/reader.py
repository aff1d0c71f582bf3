r"""Read a tidy answer, LaTeX or plain text, as a tree of nodes.

A recursive descent over tokens, in linear time but for pieces that are looked at twice. Nothing is
skipped: a text that is not mathematics to its end is unreadable.

    list := side-chain (separator side-chain)*      1, 2 and 3
    chain := side (relation side)*                  x = 2,  0 < x \le 1
    side := [currency] set-expression [unit]        [0,1) \cup \{3\},  5 cm
    sum, product, factor                            as usual, with implicit products
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from l2s_hpc.evaluation.grading.atoms import Atoms
from l2s_hpc.evaluation.grading.nodes import Node, Unreadable, negative
from l2s_hpc.evaluation.grading.words import (
    CURRENCIES,
    FUNCTIONS,
    LETTERS,
    MAGNITUDES,
    PERCENT,
    RELATIONS,
    SEPARATORS,
    SHORT_UNITS,
    TEXTS,
    UNITS,
    unit_name,
)

_SET_SIGNS = {r"\cup": "cup", r"\bigcup": "cup", r"\cap": "cap", r"\setminus": "setminus",
              r"\backslash": "setminus", "U": "cup"}  # fmt: skip
_SETS = frozenset({"seq", "cup", "cap", "setminus", "set"})
_RATIO = re.compile(r" *: *[\d\\a-zA-Z{]")
_TIMES = frozenset({"*", r"\cdot", r"\times", r"\ast", r"\bullet"})
_UNIT_SIGNS = re.compile(
    r" *(?:\^ *\{? *(?P<power>-?\d) *\}?|(?P<over>/|per\b|\\cdot|\\times|-(?=[A-Za-z])|\\circ))"
)
_AFTER_NUMBER = re.compile(r"[\d}).] *(?:/ *)?$|[a-z] +$")
_RATE = re.compile(r" */ *(?:s|h|hr|min|m|L)\b(?! *[(*])")
_ENDS = re.compile(r" *(?:\^ *\{? *-?\d *\}?)? *(?:$|[,;)\]}&=/^%]|\\|(?:and|or|per|[a-z]{2,})\b)")


def read(tidied: str, grouped: bool = True) -> Node:
    """Return the tree of a tidy text.

    Args:
        tidied: the text, within the limits.
        grouped: read 1,234 as one number, not as two.

    Raises:
        Unreadable: it is no mathematics that the reader knows.
    """
    reader = Reader(tidied.replace("**", "^"), grouped)
    node = reader.read_list()
    if reader.accept(r"\over"):
        node = Node("div", (node, reader.read_list()))
    if reader.peek().kind != "end":
        raise Unreadable(f"stopped at {reader.text[reader.at : reader.at + 20]!r}")
    return node


class Reader(Atoms):
    """The levels of the grammar from lists down to products; `Atoms` reads the factors."""

    def read_list(self) -> Node:
        """Read elements up to a closing bracket or the end."""
        self.deeper()
        found, joints = [self.read_chain()], set()
        while joint := self._separator():
            joints.add(joint)
            if self._closes():
                break
            found.append(self.read_chain())
        self.higher()
        if len(found) == 1:
            return found[0]
        return Node(
            "list", tuple(found), "or" if "or" in joints else "and" if "and" in joints else ""
        )

    def _separator(self) -> str:
        """Go past a comma, a semicolon, "and", "or" or several of them; empty if there is none."""
        joint = ""
        while True:
            token = self.peek()
            if token.text in (",", ";"):
                self.take()
                joint = joint or ","
            elif token.text in SEPARATORS and token.kind in ("cmd", "word"):
                self.take()
                joint = SEPARATORS[token.text]
            elif token.text[1:] in TEXTS and (word := self._separating_text()):
                joint = word
            else:
                return joint

    def _separating_text(self) -> str:
        """Go past \\text{and} and its like."""
        start = self.at
        self.take()
        words = self.raw_group().replace("\\", " ").strip(" ,;") if self.peek().text == "{" else ""
        if words in SEPARATORS:
            return SEPARATORS[words]
        if not words and self.text[start : self.at].strip("} ").endswith((",", ";", "{")):
            return ","
        self.at = start
        return ""

    def _closes(self) -> bool:
        return self.peek().kind == "end" or self.peek().text in (")", "]", "}", r"\}", r"\rangle")

    def read_chain(self) -> Node:
        """Read sides joined by relation signs."""
        if RELATIONS.get(self.peek().text) in ("~", "="):
            self.take()  # the left side stands in the question
        sides, signs = [self.read_side()], []
        while (sign := self.peek().text) in RELATIONS and self.peek().kind in ("sign", "cmd"):
            self.take()
            signs.append(RELATIONS[sign])
            sides.append(self.read_side())
        if not signs:
            return sides[0]
        node = Node("rel", tuple(sides), " ".join(signs))
        if node.orders and not self.bars and self.accept(":"):
            return Node("either", (node, self.read_sets()))  # x > 2: (2, \\infty)
        return node

    def read_side(self) -> Node:
        """Read one side of a relation, with the unit that may stand before or after it."""
        start = self.at
        minus = self.accept("-")
        currency = CURRENCIES.get(self.peek().text, "")
        if currency:
            self.take()
        else:
            self.at = start
        node = self.read_sets()
        if node.op not in _SETS:
            node = self._ratio(node)
        unit = self._unit() or currency or CURRENCIES.get(self.peek().text, "")
        if not currency and unit and self.peek().text in CURRENCIES:
            self.take()
        if currency and unit != currency and unit in MAGNITUDES:
            unit += currency
        if unit == "%":
            node, unit = Node("percent", (node,)), ""
        node = negative(node) if minus and currency else node
        return Node("unit", (node,), unit) if unit else node

    def _ratio(self, first: Node) -> Node:
        """Read on after a : b : c; two numbers are their quotient."""
        parts = [first]
        while not self.bars and _RATIO.match(self.text, self.at) and self.accept(":"):
            parts.append(self.read_sets())
        if len(parts) > 2:
            return Node("seq", tuple(Node("div", (part, first)) for part in parts), "::")
        return first if len(parts) == 1 else Node("div", (first, parts[1]), ":")

    def read_sets(self) -> Node:
        """Read unions, intersections and differences, from left to right."""
        self.deeper()
        node = self.read_sum()
        while (sign := self.peek().text) in _SET_SIGNS and (
            sign != "U" or node.op in ("seq", "cup")
        ):
            self.take()
            node = Node(_SET_SIGNS[sign], (node, self.read_sum()))
        self.higher()
        return node

    def read_sum(self) -> Node:
        """Read terms with their signs."""
        self.deeper()
        terms = [self._signed_term()]
        while self.peek().text in ("+", "-", r"\pm", r"\mp"):
            terms.append(self._signed_term())
        self.higher()
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _signed_term(self) -> Node:
        sign = ""
        while self.peek().text in ("+", "-", r"\pm", r"\mp"):
            text = self.take().text
            if text[0] == "\\":
                if sign.endswith("m") or sign.endswith("p"):
                    raise Unreadable("two plus-minus signs in a row")
                sign = text
            elif text == "-":
                sign = {"": "-", "-": "", r"\pm": r"\mp", r"\mp": r"\pm"}[sign]
        node = self.read_product()
        if sign == "-":
            if node.op in ("unit", "percent"):
                return replace(node, args=(negative(node.args[0]),))
            return negative(node)
        return Node("pm", (node,), "+" if sign == r"\pm" else "-") if sign else node

    def read_product(self) -> Node:
        """Read factors, with or without a sign between them."""
        node = self.read_factor()
        while True:
            sign = self.peek().text
            if sign in _TIMES and self.peek().kind != "end":
                self.take()
                node = Node("mul", (*_factors(node), self._unary(self.read_factor)))
            elif sign in ("/", r"\div", r"\slash"):
                self.take()
                node = Node("div", (node, self._unary(self._denominator)))
            elif sign in (r"\bmod", r"\mod"):
                self.take()
                node = Node("fn", (node, self.read_factor()), "mod")
            elif self.begins_factor():
                if self.peek().kind == "num" and node.op == "num":
                    raise Unreadable("two numbers side by side")
                factor = self.read_factor()
                if factor.op == "text":
                    raise Unreadable("words among mathematics")
                node = Node("mul", (*_factors(node), factor))
            else:
                return node

    def _unary(self, read: Callable[[], Node]) -> Node:
        """Read a factor that may have a sign of its own, as in 2 * -3."""
        minus = False
        while self.peek().text in ("-", "+"):
            minus ^= self.take().text == "-"
        return negative(read()) if minus else read()

    def _denominator(self) -> Node:
        """Read what a slash divides by: in 1/2x the 2, in a/bc both letters."""
        node = self.read_factor()
        while (
            node.op != "num"
            and self.begins_factor()
            and self.peek().kind == "word"
            and self.peek().start == self.at
        ):
            node = Node("mul", (*_factors(node), self.read_factor()))
        return node

    def _unit(self) -> str:
        """Read a unit or a remark in words; return one way of writing it."""
        parts: list[str] = []
        while True:
            token, start = self.peek(), self.at
            if (
                (token.kind == "cmd" and token.text[1:] in TEXTS)
                or self.is_unit_word()
                or (parts and token.kind == "word" and token.text in SHORT_UNITS)
            ):
                if self._separating():
                    break
                self.take()
                word = token.text if token.kind == "word" else self.raw_group()
                parts.append(word.replace("\\", " ").strip(" ~.,;:()"))
            elif token.text in ("%", r"\%") and token.kind != "end":
                self.take()
                parts.append("%")
            elif parts and (found := self.match(_UNIT_SIGNS)):
                if found["over"] and not self._goes_on():
                    self.at = start
                    break
                parts.append("^" + found["power"] if found["power"] else found["over"])
            elif parts and token.text in CURRENCIES:
                parts.append(CURRENCIES[self.take().text])
            else:
                break
        joined = " ".join(part for part in parts if part)
        return "%" if joined in PERCENT else unit_name(joined)

    def _separating(self) -> bool:
        start = self.at
        found = bool(self._separator())
        self.at = start
        return found

    def _goes_on(self) -> bool:
        token = self.peek()
        if token.kind == "cmd":
            return token.text[1:] in TEXTS
        return token.kind == "word" and (token.text in UNITS or token.text in SHORT_UNITS)

    def is_unit_word(self) -> bool:
        """Tell whether a unit in plain letters comes next: after a number, before an end."""
        token = self.peek()
        if token.kind != "word" or token.text in SEPARATORS:
            return False
        if token.text.lower() in PERCENT:
            return True
        rate = token.text in SHORT_UNITS and _RATE.match(self.text, token.stop)
        known = (
            rate
            or token.text in UNITS
            or token.text.removesuffix("s") in UNITS
            or (
                len(token.text) >= 4
                and token.text.islower()
                and token.text not in FUNCTIONS | LETTERS
            )
        )
        return known and bool(
            _AFTER_NUMBER.search(self.text[max(0, token.start - 12) : token.start])
            and _ENDS.match(self.text, token.stop)
        )


def _factors(node: Node) -> tuple[Node, ...]:
    return node.args if node.op == "mul" else (node,)
