"""Find the final answer in a whole model output, in time linear in its length.

The thinking part is left out, then the rules are tried in order on the end of what remains:

    boxed      the last complete box, with those joined to it by commas or "and"
    final      "the final answer is ..." after the last box, or without one
    answer     "the answer is ...", "Answer: ..."
    hashes     "#### ..."
    displayed  the last displayed formula
    statement  what the last sentence concludes: its last formula, or its last number

An output that was cut has an answer only if it has a box. A changed rule changes verdicts, so it
needs a new grader version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

TAIL = 64 * 1024  # characters after the thinking part that are searched; answers stand at the end
SPOKEN: Final = 400  # characters after "the answer is" that are looked at
SENTENCE: Final = 2000  # characters at the end in which the last sentence is looked for

# An opened box, an escaped character (so that `\{` is no brace), or a brace.
_TOKEN = re.compile(
    r"\\(?:(?:begin|math)?boxed|fbox|framebox)"
    r"(?:(?P<box>\s*\{)|[ ]+(?P<bare>-?\w[\w.,/]*)|(?![A-Za-z]))"
    r"|\\.|[{}]",
    re.DOTALL,
)
# What may stand between boxes besides the comma or the "and" that joins them.
_SPACING = re.compile(
    r"\\(?:text|mbox|mathrm|q?quad)(?![A-Za-z])|\\[()\[\],;:! ]|[\s${}~]"
    r"|\b\w{1,3}(?:_\{?\w\}?)?\s*="
)
_JOINTS = frozenset({",", ";", "and", ",and", "or", ",or"})
_NEXT_TURN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id)\|>|<｜[^｜<>]{1,30}｜>")
_FINAL = re.compile(r"final\s+answer\s+(?:is|:)", re.IGNORECASE)
_ANSWER = re.compile(
    r"\banswers?\b(?:\s+to\s+[^.\n:$]{1,60})?\W{0,4}(?:\s(?:is|are|=)\b|[:=]|(?=\$))(?!\s+not\b)\W{0,3}?(?=\S)|答案(?:是|：|:)",
    re.IGNORECASE,
)
_HOPE = re.compile(r"\s*I hope (?:it|this) is correct.*", re.DOTALL)
_MATH = re.compile(
    r"\$\$(?P<a>[^$]{1,4000})\$\$|\\\[(?P<b>(?:[^\\]|\\[^\[\]])+)\\\]"
    r"|(?<![\\\d])\$(?P<c>(?:[^$\n\\]|\\[^\n]){1,1000})\$|\\\((?P<d>(?:[^\\\n]|\\[^()\n])+)\\\)"
)
_SENTENCE_END = re.compile(r"[.!?](?:\$+|\\[\])]|\*+)?(?=\s|$)|\n\s*\n")
_CONCLUDES = re.compile(
    r"\b(?:is|are|was|be|equals?|by|there|so|thus|hence|therefore|has|have|total|exactly|pays?)\b|[=:]",
    re.IGNORECASE,
)
_MEANS = re.compile(r"^(?=.{0,200}$)(?:.*\d|.*\\[A-Za-z]|[A-Za-z]$)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PROSE = re.compile(r"[A-Za-z]{5,}|\b[A-Za-z]{2,} [A-Za-z]{2,}\b")
_IS = re.compile(r" is ")
_NUMBER = re.compile(
    r"(?<![\w.,])[-−]?(?:\$|\\\$)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?"
)


@dataclass(frozen=True)
class Extraction:
    """What was found.

    Attributes:
        answer: the answer as the model wrote it, or None.
        rule: the name of the rule that found it, else why there is none: `thinking` (the output
            ends inside the thinking part), `cut` (inside a box, or before any) or `none`.
        span: where in the text the answer stands, from the start of its first part to the end of
            its last.
    """

    answer: str | None
    rule: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Box:
    """A complete box: the span of the whole command, and the span of what stands in it."""

    start: int
    end: int
    inside: slice


def extract(text: str, finish_reason: str, last_number: bool = False) -> Extraction:
    """Return the final answer of a model output.

    The thinking part ends at the last `</think>`; its opening tag may be missing, because a chat
    template can hold it. An output that ends inside `<think>` has no answer, whatever it tried
    there.

    Args:
        text: the generated text, of any length.
        finish_reason: `stop`, or why the output was cut (`length`, `cycle`, `error`).
        last_number: if all rules fail, take the last number anywhere (rule `last_number`). It
            guesses, so it is off, and what it finds is to be counted apart.
    """
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return Extraction(None, "thinking")
    begin = 0 if closed < 0 else closed + len("</think>")
    begin = max(begin, len(text) - TAIL)
    tail = text[begin:]
    if turn := _NEXT_TURN.search(tail, len(tail) - len(tail.lstrip())):
        # What follows is another turn that the model wrote for itself; at the start it is a tag.
        tail = tail[: turn.start()] if tail[: turn.start()].strip() else tail
    found = _find(tail, finish_reason != "stop", last_number)
    if found.span is None:
        return found
    return Extraction(found.answer, found.rule, (found.span[0] + begin, found.span[1] + begin))


def _find(tail: str, cut: bool, last_number: bool) -> Extraction:
    boxes, last_opened = _complete_boxes(tail)
    inside = not boxes or last_opened >= boxes[-1].end
    if inside and (cut or last_opened >= 0):
        return Extraction(None, "cut")  # an earlier box was not meant as the final answer
    spoken = _last(_FINAL, tail)
    if boxes and not (spoken and spoken.start() > boxes[-1].end and not cut):
        return _joined_boxes(tail, boxes)
    if spoken and (found := _spoken(tail, spoken.end(), "final")):
        return found
    if boxes:
        return _joined_boxes(tail, boxes)
    if (spoken := _last(_ANSWER, tail)) and (found := _spoken(tail, spoken.end(), "answer")):
        return found
    if (at := tail.rfind("####")) >= 0 and (line := tail[at:].lstrip("# ").partition("\n")[0]):
        return _at(tail, line.strip(), at, "hashes")
    return _last_formula(tail) or _statement(tail) or _guess(tail, last_number)


# Boxes


def _joined_boxes(tail: str, boxes: list[_Box]) -> Extraction:
    """Return the last complete box, with those that are joined to it by commas or "and"."""
    first = len(boxes) - 1
    while first > 0 and _joined(tail[boxes[first - 1].end : boxes[first].start]):
        first -= 1
    answer = ", ".join(tail[box.inside].strip() for box in boxes[first:])
    return Extraction(answer, "boxed", (boxes[first].inside.start, boxes[-1].inside.stop))


def _complete_boxes(tail: str) -> tuple[list[_Box], int]:
    """Return the outermost complete boxes in order, and where the last box of all was opened.

    One pass with a stack of open braces, so that unclosed boxes cost no second look.
    """
    boxes: list[_Box] = []
    open_braces: list[re.Match[str]] = []
    last_opened = -1
    for token in _TOKEN.finditer(tail):
        if token["bare"]:
            inside = slice(token.start("bare"), token.end() - len(_loose_end(token["bare"])))
            boxes.append(_Box(token.start(), token.end(), inside))
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


def _loose_end(word: str) -> str:
    return word[len(word.rstrip(".,/")) :]


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
    return len(between) < 100 and _SPACING.sub("", between) in _JOINTS


# Words


def _last(pattern: re.Pattern[str], tail: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(tail):  # noqa: B007
        pass
    return found


def _spoken(tail: str, start: int, rule: str) -> Extraction | None:
    """Return what is said after "the answer is": the formula there, else the words."""
    said = _HOPE.sub("", tail[start : start + SPOKEN])
    said = re.sub(r"^[\s:*]+", "", said)
    formula = _MATH.search(said)
    if formula and said[: formula.start()].strip() and _IS.match(said, formula.end()):
        said = said[formula.end() :].partition(" is ")[2]  # Answer: the area of $ABC$ is 5.
        formula = _MATH.search(said)
    if formula and len(said[: formula.start()].split()) <= 6 and "." not in said[: formula.start()]:
        last = formula
        for following in _MATH.finditer(said, formula.end()):
            if re.sub(r"[\s,]|\b(?:and|or)\b", "", said[last.end() : following.start()]):
                break
            last = following
        return _at(tail, said[formula.start() : last.end()], start, rule)
    sentence = _SENTENCE_END.split(said, maxsplit=1)[0].partition("\n")[0].strip(" *:.")
    if not sentence:
        return None
    if len(sentence.split()) > 3 and (numbers := _NUMBER.findall(sentence)):
        sentence = numbers[0]
    return _at(tail, sentence, start, rule)


def _last_formula(tail: str) -> Extraction | None:
    displayed = None
    for found in _MATH.finditer(tail):
        displayed = found if found["a"] or found["b"] else displayed
    if displayed is None or _SENTENCE_END.search(tail[displayed.end() :].rstrip(" .\n")):
        return None  # a sentence follows, and may say more
    if tail[displayed.end() :].strip(" .\n") and _statement(tail[displayed.end() :]):
        return None
    return _at(tail, (displayed["a"] or displayed["b"]).strip(), displayed.start(), "displayed")


def _statement(tail: str) -> Extraction | None:
    """Return what the last sentence concludes."""
    end = _HOPE.sub("", tail[-SENTENCE:]).rstrip(" .\n*")
    begin = max((found.end() for found in _SENTENCE_END.finditer(end)), default=0)
    sentence = end[begin:].strip()
    formulas = list(_MATH.finditer(sentence))
    if len(formulas) > 1 and formulas[0].start() == 0 and formulas[-1].end() == len(sentence):
        return _at(tail, sentence, len(tail) - len(end), "statement")
    if formulas:
        first = len(formulas) - 1
        while first and _joined(sentence[formulas[first - 1].end() : formulas[first].start()]):
            first -= 1
        said = sentence[formulas[first].start() : formulas[-1].end()]
        return _at(tail, said, len(tail) - len(end), "statement")
    line = end.rpartition("\n")[2].strip(" *")
    if _MEANS.search(line) and not _PROSE.search(_COMMAND.sub("", line)):
        return _at(tail, line, len(tail) - len(end), "statement")
    numbers = list(_NUMBER.finditer(sentence))
    if not numbers or (len(numbers) > 1 and not _CONCLUDES.search(sentence)):
        return None
    return _at(tail, numbers[-1][0].strip(), len(tail) - len(end), "statement")


def _guess(tail: str, wanted: bool) -> Extraction:
    number = _last(_NUMBER, tail) if wanted else None
    if number is None:
        return Extraction(None, "none")
    return Extraction(number[0].strip(), "last_number", number.span())


def _at(tail: str, answer: str, start: int, rule: str) -> Extraction:
    where = tail.find(answer, start)
    return Extraction(answer, rule, (where, where + len(answer)) if where >= 0 else None)
