"""How the gold answer stands in a row of a benchmark, on the hub and in people's files.

An item's id is a hash of its question and gold: a rule that changes makes other items of the same
rows. So these rules are apart from those that find the answer in a model's output.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def plain(answer: Any) -> str:
    """Return the answer as it stands, without the dollars around one whole formula."""
    text = str(answer).strip()
    while len(text) > 1 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def after_hashes(answer: Any) -> str:
    """Return what follows `####` in a worked solution (gsm8k), or the answer itself."""
    return str(answer).rpartition("####")[2].strip()


def last_box(answer: Any) -> str:
    """Return what stands in the last box of a worked solution, or the answer itself."""
    text = str(answer)
    for box in reversed(list(_BOX.finditer(text))):
        inside = _inside(text, box.end())
        if inside:
            return plain(inside)
    return plain(text)


def first(answer: Any) -> str:
    """Return the first of a list of answers."""
    return plain(answer[0] if isinstance(answer, list) else answer)


def integer(answer: Any) -> str:
    """Return an integer without leading zeros (aime24)."""
    return str(answer).strip().lstrip("0") or "0"


def _inside(text: str, start: int) -> str:
    """Return what a box holds: what its braces do, or else the next word (`\\boxed 7`)."""
    if text[start : start + 1] != "{":
        word = re.match(r"[^\s$]+", text[start:])
        return word[0] if word else ""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()]
    return ""


GOLD_RULES: dict[str, Callable[[Any], str]] = {
    "plain": plain,
    "hashes": after_hashes,
    "boxed": last_box,
    "first": first,
    "integer": integer,
}
"""The rules by the names that manifests give them."""
