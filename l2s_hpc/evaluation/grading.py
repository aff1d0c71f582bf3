r"""Decide whether a model's final answer equals the gold answer.

    with Grader() as grader:
        verdicts = grader.grade(outputs, items)

Answers are hostile text that a model wrote. A pair goes down a ladder, and the first rung that can
decide does: limits (size, nesting, text shaped like code) -> equal strings -> exact numbers ->
symbolic comparison by math-verify. Only the last one runs foreign code on the answer, so it runs
in a child process with a memory limit, which is killed when it takes too long.

The child is this module, run as a program. It speaks JSON lines over its pipes: it writes what is
wrong with math-verify (empty: nothing) once it is ready, then answers `[n, gold, answer]` with
`[n, [correct, status]]`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, cast

from l2s_hpc.errors import L2SError, UserError
from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.records import GradeStatus, Verdict

if TYPE_CHECKING:
    from l2s_hpc.records import Item, Output

MATH_VERIFY: Final = "0.9.0"
GRADER: Final = f"ladder-1+math-verify-{MATH_VERIFY}"
"""The version of all that a verdict depends on; extraction rules included."""

MAX_CHARACTERS: Final = 4096
MAX_NESTING: Final = 64
SECONDS: Final = 3  # for one pair
START_SECONDS: Final = 120  # for importing sympy from a cold shared disk
MEMORY: Final = 2 * 1024**3
PAIRS_PER_CHILD: Final = 2000  # sympy's caches grow with every pair

_INSTALL: Final = f"in the nodes' Python: pip install --force-reinstall math-verify=={MATH_VERIFY}"
_TRY: Final = "what does `python -m l2s_hpc.evaluation.grading < /dev/null` say on that machine?"

_Decision = tuple[bool, GradeStatus]


class Grader:
    """Grades pairs one after another and remembers each; not for use by two threads at once.

    The child process starts when the first pair needs it, and ends with `close()`, with the
    `with` block, or with this process, however that ends.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Decision] = {}
        self._child: _Child | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child process, if there is one, and wait for its end."""
        if self._child:
            self._child.kill()
        self._child = None

    def grade(self, outputs: Sequence[Output], items: Sequence[Item]) -> list[Verdict]:
        """Return the verdict on each output, for the item at the same place.

        Raises:
            UserError: math-verify is another version here, or cannot be imported.
            L2SError: the grading process does not start.
        """
        answers = (extract(output.text, output.finish_reason).answer for output in outputs)
        return [self.judge(answer, item.gold) for answer, item in zip(answers, items, strict=True)]

    def judge(self, answer: str | None, gold: str) -> Verdict:
        """Return the verdict on an answer that is already extracted (None = there is none).

        Raises:
            UserError: math-verify is another version here, or cannot be imported.
            L2SError: the grading process does not start.
        """
        if answer is None or not answer.strip():
            return Verdict(False, answer, "no_answer")
        pair = (gold, answer)
        if pair not in self._known:
            self._known[pair] = self._decide(gold, answer)
        correct, status = self._known[pair]
        return Verdict(correct, answer, status)

    def _decide(self, gold: str, answer: str) -> _Decision:
        if _refused(answer) or _refused(gold):
            return False, "undecided"
        gold, answer = _tidy(gold), _tidy(answer)
        if _tight(gold) == _tight(answer) != "":
            return True, "ok"
        gold_number, answer_number = _number(gold), _number(answer)
        if gold_number is not None and answer_number is not None:
            return _equal(gold_number, answer_number), "ok"
        return self._compare_symbols(gold, answer)

    def _compare_symbols(self, gold: str, answer: str) -> _Decision:
        """Ask the child. One that dies is replaced once: it may have been killed from outside."""
        for _ in range(2):
            child = self._ready_child()
            try:
                return child.ask(gold, answer)
            except TimeoutError:
                child.kill()
                self._child = _Child()  # it gets ready while other pairs are decided without it
                return False, "timeout"
            except EOFError:
                self.close()
            except L2SError:
                self.close()  # it has said why it does not start, and would say it only once
                raise
        return False, "error"

    def _ready_child(self) -> _Child:
        if self._child and self._child.asked >= PAIRS_PER_CHILD:
            self.close()
        self._child = self._child or _Child()
        return self._child


# What a pair must not be. Nobody writes an answer so; sympy or a log reader could act on it.
_CODE = re.compile(
    r"__|\bimport\b|\b(?:eval|exec|compile|open|getattr|globals|system|subprocess|popen)\s*\("
    r"|\(\s*lambda\b|\\(?:input|include|write|openin|openout|read|def|csname|catcode)(?![A-Za-z])"
)


def _refused(text: str) -> bool:
    return len(text) > MAX_CHARACTERS or bool(_CODE.search(text)) or _nesting(text) > MAX_NESTING


def _nesting(text: str) -> int:
    """Return the greatest depth of brackets of any kind, matched or not."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


_UNICODE = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2013", "-"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
        "×": r"\times ",
        "·": r"\cdot ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "°": r"^{\circ}",
        "²": "^{2}",
        "³": "^{3}",
        "½": r"\frac{1}{2}",
    }
)
_TIDY = (
    (re.compile(r"(?<!\\)\\!\s*"), ""),  # not the second half of a line break
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\s+"), " "),
)


def _tidy(text: str) -> str:
    """Return the same mathematics with one way of writing spaces, signs and delimiters."""
    text = text.translate(_UNICODE)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.strip().removesuffix(".").strip()
    while len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text


_SIZES = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm)\s*\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])")


def _tight(tidy: str) -> str:
    """Return a form in which equal strings mean equal answers.

    Spaces go where neither letters nor digits would grow together: `1 1/2` is not `11/2`.
    """
    return _LOOSE_SPACE.sub("", _WORDS.sub(r"\1", _SIZES.sub("", tidy)))


_PLAIN = r"(?:(?!0)\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)|\d+)(?:\.\d*)?|\.\d+"
_TEN = r"(?:[eE]|\s?(?:\\times|\\cdot|\*)\s?10\s?\^)\s?\{?(?P<exponent>[+-]?\d{1,3})\}?"
_DECIMAL = re.compile(rf"(?P<sign>[+-]?) ?(?P<value>{_PLAIN})(?:{_TEN})?")
_PART = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_FRACTIONS = (
    re.compile(rf"(?P<sign>[+-]?) ?(?P<above>{_PART}) ?/ ?(?P<below>{_PART})"),
    re.compile(
        rf"(?P<sign>[+-]?) ?\\frac ?\{{ ?(?P<above>{_PART}) ?\}} ?\{{ ?(?P<below>{_PART}) ?\}}"
    ),
    re.compile(r"(?P<sign>[+-]?) ?\\frac ?(?P<above>\d) ?(?P<below>\d)"),
)


def _number(tidy: str) -> Fraction | None:
    """Return the exact value of a plain integer, decimal, fraction or a · 10^b, else None."""
    if match := _DECIMAL.fullmatch(tidy):
        value = Fraction(re.sub("[, ]", "", match["value"]))
        value *= Fraction(10) ** int(match["exponent"] or 0)
    elif match := next(filter(None, (form.fullmatch(tidy) for form in _FRACTIONS)), None):
        if not Fraction(match["below"]):
            return None
        value = Fraction(match["above"]) / Fraction(match["below"])
    else:
        return None
    return -value if match["sign"] == "-" else value


def _equal(gold: Fraction, answer: Fraction) -> bool:
    """Compare exactly, but let a decimal with 15 correct digits, a printed double, pass as exact.

    Integers have no such grace: they compare exactly at any size.
    """
    if gold.denominator == answer.denominator == 1:
        return gold == answer
    return abs(gold - answer) <= abs(gold) * Fraction(5, 10**15)


class _Child:
    """A grading process, seen from the outside."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # -P: a file named random.py in the working directory is not imported.
            [sys.executable, "-P", "-m", "l2s_hpc.evaluation.grading"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A fixed order of hashes makes sympy's answers repeatable.
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)
        self._ready = False
        self.asked = 0

    def ask(self, gold: str, answer: str) -> _Decision:
        """Return the child's decision.

        Raises:
            TimeoutError: it took longer than `SECONDS`; the child is busy and of no more use.
            EOFError: the child died, or is out of step.
            L2SError: the child did not start; a UserError for want of a package.
        """
        self._await_start()
        self.asked += 1
        try:
            self._requests.write(json.dumps([self.asked, gold, answer]).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        number, (correct, status) = self._reply(SECONDS)
        if number != self.asked:  # an exception came between a request and its reply
            raise EOFError
        return correct, status

    def kill(self) -> None:
        """End the process at once and leave no zombie."""
        self._process.kill()
        self._process.wait()
        self._replies.close()
        with contextlib.suppress(BrokenPipeError):  # a request that nobody read
            self._requests.close()

    def _await_start(self) -> None:
        if self._ready:
            return
        try:
            fault = self._reply(START_SECONDS)
        except (EOFError, TimeoutError) as error:
            raise L2SError("the grading process did not start", hint=_TRY) from error
        if fault:
            raise UserError(f"grader {GRADER}: {fault}", hint=_INSTALL)
        self._ready = True

    def _reply(self, seconds: float) -> Any:
        """Return the next line of JSON, waiting no longer than given."""
        deadline, line = time.monotonic() + seconds, b""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(self._replies.fileno(), 65536)
            if not part:
                raise EOFError
            line += part
        if line.count(b"\n") > 1:  # the reply to an earlier request came too
            raise EOFError
        return json.loads(line)


def _serve() -> None:
    """Be the child: tell what is wrong with math-verify, then decide pairs until EOF.

    An orphan ends at EOF; one that is busy is ended by the alarm, for which nothing is installed
    and which therefore ends even a computation that never returns to Python.
    """
    # A signal to the whole job is for the parent to judge; the parent's end is EOF here.
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(sent, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_CORE, 0)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    print(json.dumps(_fault()), file=replies, flush=True)
    for line in sys.stdin:
        number, gold, answer = json.loads(line)
        signal.alarm(SECONDS + 1)
        decision = _compare(gold, answer)
        signal.alarm(0)
        print(json.dumps([number, decision]), file=replies, flush=True)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


def _fault() -> str:
    """Import all that a comparison needs, so that no pair pays for it; return what is wrong."""
    try:
        import math_verify  # noqa: F401
        import sympy.core.random  # noqa: F401

        found = version("math-verify")
    except Exception as error:  # foreign code that does not fit this machine fails in any way
        return f"math-verify cannot be imported: {type(error).__name__}: {error}"[:500]
    return "" if found == MATH_VERIFY else f"it needs math-verify {MATH_VERIFY}, found {found}"


def _compare(gold: str, answer: str) -> _Decision:
    """Parse and compare two tidy answers with math-verify, as LaTeX and as nothing else.

    Its search for a stray number in text that is no LaTeX is off: it accepts wrong formulas. So
    are its alarms, which cannot interrupt big integers; the parent's clock does.
    """
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy.core.random import seed

    seed(0)  # sympy tests equality at random points
    latex = [LatexExtractionConfig()]
    try:
        sides = [
            parse(
                f"\\boxed{{{text}}}",
                latex,
                fallback_mode="no_fallback",
                parsing_timeout=None,
                raise_on_error=True,
            )
            for text in (gold, answer)
        ]
        if not all(sides):
            return False, "undecided"
        same = verify(*sides, float_rounding=15, timeout_seconds=None, raise_on_error=True)
        return bool(same), "ok"
    except Exception:  # foreign code on hostile text: out of memory, too deep, or its own faults
        return False, "error"


if __name__ == "__main__":
    _serve()
