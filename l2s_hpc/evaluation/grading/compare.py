"""The rungs that read: structure, then values.

This runs in the child process alone, under its limits of time and memory.
"""

from __future__ import annotations

import re
from itertools import product

from l2s_hpc.evaluation.grading.nodes import Node, Undecided, Unreadable
from l2s_hpc.evaluation.grading.reader import read
from l2s_hpc.evaluation.grading.structure import same
from l2s_hpc.evaluation.grading.words import FUNCTIONS, INFINITIES, LETTERS


def compare(gold: str, answer: str) -> bool:
    """Tell whether two tidy texts are the same answer.

    1,234 is a number, and inside a list may be two: either reading may agree.

    Raises:
        Undecided: the rules cannot tell; the message says why.
    """
    if (wanted := _CHOICE.fullmatch(gold)) and (chosen := _CHOSEN.match(answer)):
        return wanted[1] == chosen[1]
    answer = _LABELLED.sub("", answer)
    golds, answers = _readings(gold), _readings(answer)
    unclear: Undecided | None = None
    for one, two in product(golds, answers):
        try:
            if same(one, two):
                return True
        except Undecided as error:
            unclear = unclear or error
    if unclear:
        raise unclear
    return False


_FONT = r"(?:\\(?:text|textbf|textrm|mathbf|mathrm|mbox|rm|bf) ?)?\{? ?"
_CHOICE = re.compile(rf"{_FONT}\(? ?([A-J]) ?\)? ?\}}?")
# The letter of a choice, and what is offered under it: (C) 12, B. yes
_CHOSEN = re.compile(rf"{_FONT}(?:\( ?)?([A-J]) ?[).:][}} ]+(?=[\w\\])")
_LABELLED = re.compile(r"\\(?:text|textbf|textrm|mathbf|mathrm|mbox) ?\{ ?\([A-J]\) ?\} *(?=[^ ])")
_PROSE = re.compile(r"[A-Za-z]{2,}(?:[ ,'-]+[A-Za-z]+)*")
_JOINTS = re.compile(r"\b(?:and|or)\b|,")


def _readings(text: str) -> list[Node]:
    if _PROSE.fullmatch(text) and not _JOINTS.search(text) and not _known(text):
        if text.casefold() in INFINITIES:
            return [Node("inf")]
        return [Node("text", text=text.casefold())]
    try:
        first = read(text)
    except Unreadable:
        return [read(text, grouped=False)]
    if "," not in text:
        return [first]
    second = read(text, grouped=False)
    return [first] if first == second else [first, second]


def _known(text: str) -> bool:
    """Tell whether letters may be mathematics: short products, names of functions and letters."""
    words = text.split()
    return all(len(word) < 4 or word in FUNCTIONS or word in LETTERS for word in words) and (
        words[0].casefold() != "no"
    )
