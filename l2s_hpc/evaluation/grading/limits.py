"""The first rung: what is refused unread, because reading it could cost time, memory or worse."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 4096
MAX_NESTING: Final = 64

# Nobody writes an answer so; a library or a reader of logs could act on it.
_CODE = re.compile(
    r"__|\b(?:import|print|exit|quit)\b\s*[\w(]|\(\s*lambda\b|"
    r"\b(?:eval|exec|compile|open|input|getattr|setattr|globals|locals|vars|system|popen"
    r"|subprocess|breakpoint)\s*\(|"
    r"\\(?:input|include|write|openin|openout|read|def|csname|catcode|immediate|loop)(?![A-Za-z])"
)


def refusal(text: str) -> str:
    """Return why a text is not graded at all; empty if it may be read on."""
    if len(text) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS} characters"
    if _CODE.search(text):
        return "shaped like code"
    if _nesting(text) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING}"
    return ""


def _nesting(text: str) -> int:
    """Return the greatest depth of brackets of any kind, matched or not."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
