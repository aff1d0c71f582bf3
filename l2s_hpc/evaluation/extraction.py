"""Find the final answer in a whole model output, in time linear in its length.

The thinking part is left out, then the rules are tried in order on the end of what remains. A new
rule is one function and one line in `RULES`; it changes verdicts, so it needs a new grader version.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

TAIL = 64 * 1024  # characters after the thinking part that are searched; answers stand at the end

# An opened box, an escaped character (so that `\{` is no brace), or a brace.
_TOKEN = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
# What may stand between boxes besides the comma or the "and" that joins them.
_SPACING = re.compile(r"\\(?:text|mbox|mathrm|q?quad)(?![A-Za-z])|\\[()\[\],;:! ]|[\s${}~]")
_JOINTS = frozenset({",", "and", ",and"})


@dataclass(frozen=True)
class Extraction:
    """What was found.

    Attributes:
        answer: the answer as the model wrote it, or None.
        rule: the name of the rule that found it, else why there is none: `thinking` (the output
            ends inside the thinking part) or `none`.
    """

    answer: str | None
    rule: str


@dataclass(frozen=True)
class _Box:
    """A complete box: the span of the whole command, and the span of what stands in it."""

    start: int
    end: int
    inside: slice


def extract(text: str, finish_reason: str) -> Extraction:
    """Return the final answer of a model output.

    The thinking part ends at the last `</think>`; its opening tag may be missing, because a chat
    template can hold it. An output that ends inside `<think>` has no answer, whatever it tried
    there.

    Args:
        text: the generated text, of any length.
        finish_reason: `stop`, or why the output was cut (`length`, `cycle`, `error`).
    """
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return Extraction(None, "thinking")
    tail = (text if closed < 0 else text[closed + len("</think>") :])[-TAIL:]
    for name, find in RULES:
        answer = find(tail, finish_reason != "stop")
        if answer is not None:
            return Extraction(answer, name)
    return Extraction(None, "none")


def _boxed(tail: str, cut: bool) -> str | None:
    """Return the last complete box, with those that are joined to it by commas or "and"."""
    boxes, last_opened = _complete_boxes(tail)
    if not boxes or (cut and last_opened >= boxes[-1].end):
        return None  # cut inside a box: an earlier box was not meant as the final answer
    first = len(boxes) - 1
    while first > 0 and _joined(tail[boxes[first - 1].end : boxes[first].start]):
        first -= 1
    return ", ".join(tail[box.inside].strip() for box in boxes[first:])


def _complete_boxes(tail: str) -> tuple[list[_Box], int]:
    """Return the outermost complete boxes in order, and where the last box of all was opened.

    One pass with a stack of open braces, so that unclosed boxes cost no second look.
    """
    boxes: list[_Box] = []
    open_braces: list[re.Match[str]] = []
    last_opened = -1
    for token in _TOKEN.finditer(tail):
        if token["box"]:
            last_opened = token.start()
        if token["box"] or token[0] == "{":
            open_braces.append(token)
        elif token[0] == "}" and open_braces:
            opening = open_braces.pop()
            if opening["box"]:
                inside = _unwrapped(tail, boxes, slice(opening.end(), token.start()))
                boxes.append(_Box(opening.start(), token.end(), inside))
    return boxes, last_opened


def _unwrapped(tail: str, boxes: list[_Box], inside: slice) -> slice:
    """Drop the boxes inside a box that closes; return the inside of one that is all it holds."""
    dropped = []
    while boxes and boxes[-1].start >= inside.start:
        dropped.append(boxes.pop())
    if len(dropped) == 1:
        around = tail[inside.start : dropped[0].start] + tail[dropped[0].end : inside.stop]
        return inside if around.strip() else dropped[0].inside
    return inside


def _joined(between: str) -> bool:
    return _SPACING.sub("", between) in _JOINTS


RULES: tuple[tuple[str, Callable[[str, bool], str | None]], ...] = (("boxed", _boxed),)
