"""The text under the reader's eye: the next token, and what stands where."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from l2s_hpc.evaluation.grading.nodes import Unreadable
from l2s_hpc.evaluation.grading.numbers import GROUPED

MAX_DEPTH: Final = 250  # of the reader's own calls: about fifty brackets in each other

_DIGITS = r"\d+(?:\.\d*)?|\.\d+"
_EXPONENT = r"(?:[eE][+-]?\d{1,4}(?![\d.]))?"
_REST = r"|(?P<cmd>\\[A-Za-z]+|\\.)|(?P<word>[^\W\d_]+)|(?P<sign><=|>=|!=|==|:=|.)"
_GROUPED = GROUPED + r"(?:\.\d*)?|"
_TOKENS = {
    grouped: re.compile(rf" *(?:(?P<num>(?:{groups}{_DIGITS}){_EXPONENT}){_REST})", re.DOTALL)
    for grouped, groups in ((True, _GROUPED), (False, ""))
}


class Token(NamedTuple):
    """A token: num, cmd, word, sign or end; its text; where it starts and where the next does."""

    kind: str
    text: str
    start: int
    stop: int


class Lexer:
    """Reads tokens one after another; `at` is where the next one starts, and may be set back."""

    def __init__(self, text: str, grouped: bool) -> None:
        self.text = text
        self.at = 0
        self._depth = 0
        self._pattern = _TOKENS[grouped]
        self._seen: dict[int, Token] = {}

    def peek(self) -> Token:
        """Return the next token and leave it there."""
        if self.at not in self._seen:
            match = self._pattern.match(self.text, self.at)
            if match is None or match.lastgroup is None:
                self._seen[self.at] = Token("end", "", self.at, self.at)
            else:
                kind = match.lastgroup
                self._seen[self.at] = Token(kind, match[kind], match.start(kind), match.end())
        return self._seen[self.at]

    def take(self) -> Token:
        """Return the next token and go past it."""
        token = self.peek()
        self.at = token.stop
        return token

    def accept(self, *texts: str) -> bool:
        """Go past the next token if it is one of these."""
        if self.peek().kind != "end" and self.peek().text in texts:
            self.take()
            return True
        return False

    def expect(self, text: str) -> None:
        """Go past the next token, which must be this."""
        if not self.accept(text):
            raise Unreadable(f"expected {text} at {self.text[self.at : self.at + 12]!r}")

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Go past a pattern if it stands here."""
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def raw_group(self) -> str:
        """Return what stands between the next braces, unread, or the next character or command."""
        if self.peek().text != "{":
            token = self.take()
            if token.kind == "end":
                raise Unreadable("the text ends too early")
            if token.kind in ("word", "num") and len(token.text) > 1:
                self.at = token.start + 1
                return token.text[0]
            return token.text
        start = self.peek().stop
        depth = 0
        for found in re.finditer(r"\\.|[{}]", self.text[start - 1 :]):
            depth += (found[0] == "{") - (found[0] == "}")
            if depth == 0:
                self.at = start - 1 + found.end()
                return self.text[start : self.at - 1]
        raise Unreadable("a brace is not closed")

    def deeper(self) -> None:
        """Count a level; raise Unreadable if there are too many."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("nested too deep")

    def higher(self) -> None:
        """Leave a level."""
        self._depth -= 1
