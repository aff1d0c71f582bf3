r"""Read what has an opening and a closing command of its own: sets, matrices, sums, integrals."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from l2s_hpc.evaluation.grading.lexer import Lexer
from l2s_hpc.evaluation.grading.nodes import Node, Unreadable, number
from l2s_hpc.evaluation.grading.words import LETTERS, NUMBER_SETS, names

DIFFERENTIAL: Final = re.compile(r" *(?:d|\\mathrm ?\{ ?d ?\}) ?(\\[a-z]+|[a-zA-Z])(?![A-Za-z])")
_TENDS = re.compile(r" *(\\[a-z]+|[a-zA-Z]) *(?:\\to|\\rightarrow)(?![A-Za-z])")
_SIDE = re.compile(r" *\^ *\{? *([+-]) *\}? *$")
_MATRICES = frozenset(names("matrix pmatrix bmatrix Bmatrix smallmatrix array vmatrix Vmatrix"))


class Blocks(Lexer):
    """Reads blocks; the factors around them come from `atoms.Atoms`, the rest from `Reader`."""

    def __init__(self, text: str, grouped: bool) -> None:
        super().__init__(text, grouped)
        self.bars = self.integrals = 0

    def read_list(self) -> Node:
        """Read elements up to a closing bracket or the end."""
        raise NotImplementedError

    def read_chain(self) -> Node:
        """Read sides joined by relation signs."""
        raise NotImplementedError

    def read_side(self) -> Node:
        """Read one side of a relation."""
        raise NotImplementedError

    def read_sum(self) -> Node:
        """Read terms with their signs."""
        raise NotImplementedError

    def read_product(self) -> Node:
        """Read factors."""
        raise NotImplementedError

    def read_factor(self) -> Node:
        """Read an atom and its powers."""
        raise NotImplementedError

    def begins_factor(self) -> bool:
        """Tell whether a factor can start here."""
        raise NotImplementedError

    def is_unit_word(self) -> bool:
        """Tell whether a unit in plain letters comes next."""
        raise NotImplementedError

    def script(self) -> Node:
        """Read an exponent or a bound."""
        raise NotImplementedError

    def group(self) -> Node:
        """Read what stands in braces."""
        raise NotImplementedError

    def argument(self) -> Node:
        """Read a group, or one digit, letter or command."""
        raise NotImplementedError

    def read_block(self, command: str) -> Node:
        """Read on after a command that opens a block, or that is one."""
        simple = _CONSTANTS.get(command)
        if simple is not None:
            return simple
        read: dict[str, Callable[[], Node]] = {
            r"\sqrt": self._root,
            r"\{": self._set,
            r"\lbrace": self._set,
            r"\langle": lambda: self._between(r"\rangle", "seq"),
            r"\lfloor": lambda: self._between(r"\rfloor", "floor"),
            r"\lceil": lambda: self._between(r"\rceil", "ceil"),
            r"\begin": self._environment,
            r"\sum": lambda: self._series("sum"),
            r"\prod": lambda: self._series("prod"),
            r"\int": self._integral,
            r"\lim": self._limit,
            r"\mathbb": self._number_set,
            r"\boxed": self.group,
            r"\fbox": self.group,
        }
        if command not in read:
            raise Unreadable(f"unknown command {command}")
        return read[command]()

    def _root(self) -> Node:
        degree = None
        if self.accept("["):
            degree = self.read_sum()
            self.expect("]")
        text = self.peek().text
        inner = self.read_factor() if text == "(" else self.argument()
        return Node("fn", (inner,) if degree is None else (inner, degree), "root")

    def _set(self) -> Node:
        bars, self.bars = self.bars, 1  # a bar divides; it does not open an absolute value
        if self.accept(r"\}", r"\rbrace"):
            self.bars = bars
            return Node("empty")
        node = self.read_list()
        if self.accept("|", r"\mid", ":", r"\colon"):
            self.bars = 0
            node = self.read_list()
            if not node.has("rel"):
                raise Unreadable("a set without its condition")
        else:
            node = Node("set", node.args if node.op == "list" else (node,))
        self.bars = bars
        if not self.accept(r"\}", r"\rbrace"):
            raise Unreadable("a set is not closed")
        return node

    def _between(self, closing: str, name: str) -> Node:
        node = self.read_list()
        self.expect(closing)
        if name == "seq":
            return Node("seq", node.args if node.op == "list" else (node,), "()")
        return Node("fn", (node,), name)

    def _environment(self) -> Node:
        name = self.raw_group().strip().rstrip("*")
        if name == "cases":
            return self._cases()
        if name not in _MATRICES:
            raise Unreadable(f"environment {name}")
        if name == "array" and self.peek().text == "{":
            self.raw_group()
        rows, cells = [], [self.read_side()]
        while not self.accept(r"\end"):
            if self.accept("&"):
                cells.append(self.read_side())
            elif self.accept("\\\\"):
                self.accept(r"\hline")
                rows.append(Node("row", tuple(cells)))
                if self.accept(r"\end"):
                    cells = []
                    break
                cells = [self.read_side()]
            else:
                raise Unreadable("a matrix is not closed")
        self.raw_group()
        if cells:
            rows.append(Node("row", tuple(cells)))
        if len({len(row.args) for row in rows}) != 1:
            raise Unreadable("a matrix whose rows differ in length")
        matrix = Node("matrix", tuple(rows))
        return Node("fn", (matrix,), "det") if name.casefold() == "vmatrix" else matrix

    def _cases(self) -> Node:
        """Read a system of equations; cases with conditions are no single answer."""
        lines = [self.read_list()]
        while self.accept("\\\\"):
            if self.peek().text == r"\end":
                break
            lines.append(self.read_list())
        self.expect(r"\end")
        self.raw_group()
        return lines[0] if len(lines) == 1 else Node("list", tuple(lines), "and")

    def _series(self, op: str) -> Node:
        self.expect("_")
        start = self.group()
        self.expect("^")
        stop = self.script()
        if start.op != "rel" or start.text != "=" or start.args[0].op != "sym":
            raise Unreadable("a sum without its index")
        return Node(op, (*start.args[:2], stop, self.read_product()))

    def _integral(self) -> Node:
        bounds: dict[str, Node] = {}
        while self.peek().text in ("_", "^"):
            sign = self.take().text
            bounds[sign] = self.script()
        self.integrals += 1
        body = number(1) if DIFFERENTIAL.match(self.text, self.at) else self.read_sum()
        self.integrals -= 1
        found = self.match(DIFFERENTIAL)
        if not found or len(bounds) == 1:
            raise Unreadable("an integral without its variable")
        ends = (bounds["_"], bounds["^"]) if bounds else ()
        return Node("int", (variable(found[1]), body, *ends))

    def _limit(self) -> Node:
        self.expect("_")
        below = self.raw_group()
        found, side = _TENDS.match(below), _SIDE.search(below)
        if not found:
            raise Unreadable("a limit without its variable")
        inner = type(self)(below[found.end() : side.start() if side else None], False)
        inner.deeper()
        target = inner.read_sum()
        if inner.peek().kind != "end":
            raise Unreadable("a limit without its end")
        return Node(
            "lim", (variable(found[1]), target, self.read_product()), side[1] if side else ""
        )

    def _number_set(self) -> Node:
        name = self.raw_group().strip()
        if name not in NUMBER_SETS:
            raise Unreadable(f"unknown set {name}")
        return Node("numset", text=name)


_CONSTANTS = {
    r"\infty": Node("inf"),
    r"\emptyset": Node("empty"),
    r"\varnothing": Node("empty"),
    r"\oslash": Node("empty"),
}


def variable(text: str) -> Node:
    """Return the node of a letter or a Greek command."""
    name = text.lstrip("\\")
    return Node("sym", text=LETTERS.get(name, name))
