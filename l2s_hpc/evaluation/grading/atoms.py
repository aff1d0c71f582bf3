"""Read the factors of a product: numbers, letters, brackets, fractions, functions, matrices."""

from __future__ import annotations

import re
from fractions import Fraction

from l2s_hpc.evaluation.grading import numbers
from l2s_hpc.evaluation.grading.blocks import DIFFERENTIAL, Blocks, variable
from l2s_hpc.evaluation.grading.lexer import Token
from l2s_hpc.evaluation.grading.nodes import Node, Unreadable, negative, number
from l2s_hpc.evaluation.grading.words import (
    DECORATIONS,
    FUNCTIONS,
    INFINITIES,
    INVERSES,
    LETTERS,
    MEANT,
    NUMBER_WORDS,
    SEPARATORS,
    TEXTS,
    WORDS,
    names,
)

_REPEATING = re.compile(r" *\\(?:overline|bar|dot) ?\{? ?(\d+) ?\}?")
_MIXED = re.compile(
    r" *\\frac ?(?:\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}|(\d) ?(\d)|(\d) ?\{ ?(\d+) ?\})"
    r"|(?: +(\d+) ?/ ?(\d+))"
)
_DERIVATIVE = re.compile(r" *\\frac ?\{ ?d ?\} ?\{ ?d ?(\\?[a-zA-Z]+) ?\}")
_CIRCLE = re.compile(r" *\^ *(?:\{ *\\(?:circ|degree) *\}|\\circ|\\degree)(?![A-Za-z])|"
                     r" *\\(?:degree|circ)(?![A-Za-z])")  # fmt: skip
_ORDINAL_END = re.compile(r"(?:st|nd|rd|th)\b")
_ORDINAL = re.compile(r" *\{? *(?:\\(?:text|mathrm|rm) *\{)? *(?:st|nd|rd|th)\b *\}{0,2}")
_INVERSE = re.compile(r" *\{? *- *1 *\}?(?= *\()")
_ARGUMENTS = re.compile(r" *\([^()\[\]{},;]+(?:,[^()\[\]{},;]+)+\)")
_BARE_NUMBER = re.compile(r" *(\d+)(?![.\d])")
_AT_ZERO = re.compile(r" *\( *0 *\)")
_OF_TIME = re.compile(r" *\( *t *\)")
_UPRIGHT = re.compile(
    r" *\\(mathrm|operatorname|text|rm) ?\{ ?[\\~]? ?([A-Za-z]+) ?\}(?=( *(?:[({[_]|\\\{))?)"
)
_CLOSERS = {"(": ")]", "[": "])"}
_STARTS = frozenset({"(", "[", "{", r"\{", r"\lbrace", r"\langle", r"\lfloor", r"\lceil"})
_NOT_FACTORS = frozenset(
    names(
        r"\cup \cap \setminus \backslash \le \leq \leqslant \ge \geq \geqslant \lt \gt \ne \neq \in"
        r" \approx \simeq \sim \equiv \pm \mp \cdot \times \div \bmod \mod \pmod \land \lor \wedge"
        r" \vee \mid \} \rbrace \rangle \rfloor \rceil \rvert \rVert \% \$ \\ \end \to \circ"
        r" \degree \choose \over \hline \colon \ast \bigcup \coloneqq \doteq \notin \subset"
        r" \subseteq \implies \ldots \dots \cdots \rightarrow \Rightarrow \quad \bullet \slash"
    )
)
_OPENS_ABS = frozenset({"|", r"\lvert", r"\vert", r"\|"})
_CLOSES_ABS = frozenset({"|", r"\rvert", r"\vert", r"\|"})
_APPLIED = frozenset("fghFGHP")


class Atoms(Blocks):
    """Reads factors; the levels above come from `reader.Reader`."""

    def begins_factor(self) -> bool:
        """Tell whether a factor can start here, so that a product goes on without a sign."""
        token = self.peek()
        if token.kind == "num":
            return True
        if self.integrals and DIFFERENTIAL.match(self.text, self.at):
            return False
        if token.kind == "word":
            return token.text not in SEPARATORS and token.text != "U" and not self.is_unit_word()
        if token.kind == "cmd":
            upright = token.text[1:] in TEXTS and not self._upright_letter()
            return token.text not in _NOT_FACTORS and not upright
        return token.text in _STARTS or (token.text == "|" and not self.bars)

    def read_factor(self) -> Node:
        """Read an atom and what follows it closely: powers, indices, factorials, degrees."""
        self.deeper()
        node = self._atom()
        while True:
            token = self.peek()
            if self.match(_CIRCLE):
                node = Node("unit", (node,), "deg")
            elif token.text == "^":
                self.take()
                node = self._raised(node)
            elif token.text == "_" and node.op in ("sym", "num"):
                self.take()
                node = _indexed(node, self.raw_group())
            elif token.text == "!" and token.kind == "sign":
                self.take()
                double = self.text.startswith("!", self.at) and self.accept("!")
                node = Node("fn", (node,), "double factorial" if double else "factorial")
            elif token.text == "'" and node.op == "sym":
                self.take()
                node = Node("sym", text=node.text + "'")
            elif node.op == "sym" and self.match(_OF_TIME):
                pass  # a quantity that depends on time, as physics writes it
            elif node.op == "sym" and self.match(_AT_ZERO):
                node = Node("sym", text=node.text + "(0)")  # a first value, no product with 0
            elif node.op == "sym" and (self._applies(node) or self._has_arguments()):
                node = self._application(node)
            elif token.text in ("%", r"\%") and token.kind != "end":
                self.take()
                node = Node("percent", (node,))
            else:
                self.higher()
                return node

    def _raised(self, base: Node) -> Node:
        if base.op == "num" and self.match(_ORDINAL):
            return base
        if base.text in _APPLIED and self.match(_INVERSE):
            return Node("sym", text=base.text + "^-1")
        if self.match(re.compile(r" *(?:\{ *(?:T|\\top|\\prime|'|\*) *\}|\\top|\\prime|T\b)")):
            prime = base.op == "sym"
            return Node("sym", text=base.text + "'") if prime else Node("fn", (base,), "transpose")
        exponent = self.script()
        return Node("pow", (base, exponent))

    def script(self) -> Node:
        """Read an exponent: a group, or a number or letter with its sign."""
        if self.accept("-"):
            return negative(self.script())
        self.accept("+")
        token = self.peek()
        if token.text == "{":
            return self.group()
        if found := self.match(_BARE_NUMBER):
            return number(int(found[1]))  # no group of digits: \log_2 800 is no \log_{2800}
        if token.kind == "word" and token.text not in FUNCTIONS:
            return self._letter(self.take())
        return self._atom()

    def _applies(self, node: Node) -> bool:
        """Tell whether a bracket after a letter holds arguments: f(x), but not a(b + c)."""
        return self.peek().text == "(" and re.split(r"[_'^]", node.text)[0] in _APPLIED

    def _has_arguments(self) -> bool:
        """Tell whether a bracket after a letter holds several arguments, so is no factor."""
        return _ARGUMENTS.match(self.text, self.at) is not None

    def _application(self, node: Node) -> Node:
        inner = self._bracket()
        args = inner.args if inner.op == "seq" else (inner,)
        return Node("app", args, node.text)

    def _atom(self) -> Node:
        self.deeper()
        token = self.peek()
        if token.kind == "num":
            node = self._number(self.take())
        elif token.kind == "word":
            node = self._word()
        elif token.kind == "cmd":
            node = self._command(token)
        elif token.text == "{":
            node = self.group()
        elif token.text in _CLOSERS:
            node = self._bracket()
        elif token.text == "|":
            node = self._absolute()
        else:
            raise Unreadable(f"stopped at {self.text[self.at : self.at + 20]!r}")
        self.higher()
        return node

    def _number(self, token: Token) -> Node:
        digits, _, exponent = token.text.lower().partition("e")
        value = numbers.decimal(digits)
        if exponent:
            value *= Fraction(10) ** int(exponent)  # of four digits at most
        elif "." in digits and (repeating := self.match(_REPEATING)):
            places = len(digits.partition(".")[2])
            nines = Fraction(int(repeating[1]), 10 ** len(repeating[1]) - 1)
            return number(value + nines / 10**places)
        elif digits.isdigit() and self.match(_ORDINAL_END):
            pass
        elif digits.isdigit() and (mixed := _MIXED.match(self.text, self.at)):
            above, below = (int(part) for part in mixed.groups() if part)
            if 0 < above < below:
                self.at = mixed.end()
                return number(value + Fraction(above, below))
        return Node("num", text=digits if "." in digits else "", value=value)

    def _word(self) -> Node:
        token = self.take()
        word = token.text
        if word in FUNCTIONS:
            return self._function(FUNCTIONS[word])
        if (word in LETTERS and len(word) > 2) or word == "pi":
            return Node("sym", text=LETTERS[word])
        if word in INFINITIES:
            return Node("inf")
        if (len(word) >= 4 and not word.isupper()) or word.lower() in WORDS:
            return self._prose(word)
        return self._letter(token)

    def _prose(self, word: str) -> Node:
        words = [word.casefold()]
        while self.peek().kind == "word" and self.peek().text not in SEPARATORS:
            words.append(self.take().text.casefold())
        return Node("text", text=" ".join(words))

    def _letter(self, token: Token) -> Node:
        """Take the first letter of a run; the rest are factors of their own."""
        if not token.text[0].isascii():
            raise Unreadable("letters of another script")
        self.at = token.start + 1
        return Node("sym", text=token.text[0])

    def group(self) -> Node:
        self.expect("{")
        if self.accept("}"):
            raise Unreadable("an empty group")
        bars, self.bars = self.bars, 0
        node = self.read_list()
        if self.accept(r"\choose"):
            node = Node("fn", (node, self.read_list()), "binom")
        elif self.accept(r"\over"):
            node = Node("div", (node, self.read_list()))
        self.bars = bars
        self.expect("}")
        return node

    def _bracket(self) -> Node:
        """Read (a), (a, b), [a, b) and their like."""
        opened = self.take().text
        bars, self.bars = self.bars, 0
        integrals, self.integrals = self.integrals, 0
        node = self.read_list()
        self.bars, self.integrals = bars, integrals
        closed = self.take().text
        if not closed or closed not in _CLOSERS[opened]:
            raise Unreadable("a bracket is not closed")
        if node.op == "list":
            return Node("seq", node.args, opened + closed)
        if opened == "[" and closed == "]" and node.op != "num":
            return node
        if opened + closed not in ("()", "[]"):
            raise Unreadable("brackets that do not match")
        return node

    def _absolute(self) -> Node:
        self.take()
        self.bars += 1
        node = self.read_sum()
        self.bars -= 1
        if self.peek().text not in _CLOSES_ABS:
            raise Unreadable("a bar is not closed")
        self.take()
        return Node("fn", (node,), "det") if node.op == "matrix" else Node("abs", (node,))

    def _command(self, token: Token) -> Node:
        name = token.text[1:]
        if name in TEXTS:
            return self._text()
        if name == "frac" and (found := self.match(_DERIVATIVE)):
            return Node("deriv", (variable(found[1]), self.read_product()))
        self.take()
        if name in ("frac", "binom", "dfrac", "tfrac", "sfrac"):
            one, two = self.argument(), self.argument()
            return Node("fn", (one, two), "binom") if name == "binom" else Node("div", (one, two))
        if name in FUNCTIONS and name != "sqrt":
            return self._function(FUNCTIONS[name])
        if name == "Delta" and self.peek().kind in ("word", "cmd") and self.begins_factor():
            return Node("fn", (self.read_factor(),), "angle")
        if name in ("angle", "measuredangle", "triangle"):
            return Node("sym", text=f"{name} {self.take().text}")
        if name in LETTERS:
            return Node("sym", text=LETTERS[name])
        if name in DECORATIONS:
            return self._decorated(name)
        if token.text in _OPENS_ABS:
            self.at = token.start
            return self._absolute()
        if known := _run_together(name):
            self.at = token.start + 1 + len(known)
            return self._function(known) if known in FUNCTIONS else Node("sym", text=LETTERS[known])
        return self.read_block(token.text)

    def argument(self) -> Node:
        r"""Read an argument of \frac: a group, or one digit, letter or command."""
        token = self.peek()
        if token.text == "{":
            return self.group()
        if token.kind == "num":
            self.at = token.start + 1
            return number(int(token.text[0])) if token.text[0].isdigit() else self._unread()
        return self._letter(self.take()) if token.kind == "word" else self._atom()

    def _unread(self) -> Node:
        raise Unreadable(f"stopped at {self.text[self.at : self.at + 20]!r}")

    def _upright_letter(self) -> bool:
        r"""Tell whether \mathrm{x} stands here for a letter, or \operatorname for a function."""
        match = _UPRIGHT.match(self.text, self.at)
        if match is None:
            return False
        if match[2] in FUNCTIONS and (match[2] not in ("min", "max") or match[3]):
            return True
        return match[1] == "mathrm" and match[2] in ("e", "i", "d", "x", "y", "z")

    def _text(self) -> Node:
        if self._upright_letter():
            self.take()
            word = self.raw_group().strip(" \\~")
            return self._function(FUNCTIONS[word]) if word in FUNCTIONS else Node("sym", text=word)
        self.take()
        words = " ".join(re.sub(r"[~\\]", " ", self.raw_group()).strip(" .,;:").split())
        if letter := re.fullmatch(r"\(([A-Za-z])\)|([A-Za-z])", words):
            return Node("sym", text=letter[1] or letter[2])
        if not words:
            raise Unreadable("an empty text")
        return Node("text", text=words.casefold())

    def _decorated(self, name: str) -> Node:
        raw = re.sub(r"\\[a-zA-Z]+ ?|[{} ]", lambda m: m[0].strip("\\ {}"), self.raw_group())
        if not raw:
            raise Unreadable("an empty group")
        return Node("sym", text=f"{name} {raw}" if name in MEANT else raw)

    def _function(self, name: str) -> Node:
        """Read a function's power, base and argument."""
        base = power = None
        while self.peek().text in ("^", "_"):
            if self.take().text == "_":
                base = self.script()
            else:
                power = self.script()
        if name in ("max", "min", "gcd", "lcm") and base is not None:
            raise Unreadable("an optimum under a condition")
        inner = self._function_argument(name)
        if power == negative(number(1)) and name in INVERSES:
            name, power = INVERSES[name], None
        args = inner.args if inner.op in ("seq", "list") else (inner,)
        node = Node("fn", args if base is None else (*args, base), name)
        return node if power is None else Node("pow", (node, power))

    def _function_argument(self, name: str) -> Node:
        token = self.peek()
        if token.text in ("(", "["):
            return self._bracket()
        if token.text == "{":
            return self.group()
        if token.text == r"\{" and name in ("max", "min", "gcd", "lcm"):
            return Node("list", self.read_block(self.take().text).args)
        if not self.begins_factor() and self.peek().text != "-":
            raise Unreadable("a function without its argument")
        minus = self.accept("-")
        factors = [self.read_factor()]
        while self._argument_goes_on():
            factors.append(self.read_factor())
        node = factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
        angle = any(factor.text == "pi" for factor in factors)  # \cos \pi/3, but \ln 3/2
        if angle and self.peek().text == "/" and re.match(r" */ *\d", self.text[self.at :]):
            self.take()
            node = Node("div", (node, self.read_factor()))
        return negative(node) if minus else node

    def _argument_goes_on(self) -> bool:
        token = self.peek()
        name = token.text.removeprefix("\\")
        if token.text in ("(", "[", "|") or (name in FUNCTIONS and name != "sqrt"):
            return False
        return self.begins_factor() and token.text not in _STARTS


def _run_together(name: str) -> str:
    r"""Return the command in \cotx: one whose space before a letter was lost."""
    short = name[:-1]
    plain = FUNCTIONS.get(short) == short or short in LETTERS
    return short if plain and len(short) > 1 and name not in ("exp", "sec", "csc", "eta") else ""


def _indexed(node: Node, raw: str) -> Node:
    """Return a letter with its index, or a number in a base."""
    index = re.sub(r"\\(?:text|mathrm|mathit|rm|operatorname)|[{}\\ ]", "", raw)
    if node.op == "sym":
        return Node("sym", text=f"{node.text}_{index}")
    index = str(NUMBER_WORDS.get(index, index.strip("()")))
    if not index.isdigit() or not 2 <= int(index) <= 36 or node.value is None or node.text:
        raise Unreadable("an index on a number")
    try:
        return number(int(str(node.value), int(index)))
    except ValueError:
        raise Unreadable("a digit that its base does not have") from None
