"""The grading process: `python -m l2s_hpc.evaluation.grading.child`, started by `pool`.

It writes what is wrong with its packages (empty: nothing) once it is ready, then answers each line
`[n, gold, answer]` with `[n, correct, status, reason]`, until the end of its input. Its memory is
limited; an audit hook refuses what grading never needs, should a library ever try it on an answer:
to compile text, to start a process, to open a file for writing, to use the network.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from importlib.metadata import version
from typing import Any, Final

from l2s_hpc.evaluation.grading.nodes import Undecided, Unreadable
from l2s_hpc.evaluation.grading.pool import SECONDS, SYMPY
from l2s_hpc.records import GradeStatus

MEMORY: Final = 1024**3

_Outcome = tuple[bool, GradeStatus, str]


def serve() -> None:
    """Be the child until the end of the input.

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
    fault = _prepare()
    sys.addaudithook(refuse)
    print(json.dumps(fault), file=replies, flush=True)
    for line in sys.stdin:
        number, gold, answer = json.loads(line)
        signal.alarm(SECONDS + 1)
        outcome = decide(gold, answer)
        signal.alarm(0)
        print(json.dumps([number, *outcome]), file=replies, flush=True)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


def _prepare() -> str:
    """Import and try all that a comparison needs, so that no pair pays for it; return a fault."""
    try:
        found = version("sympy")
        for gold, answer in (
            (r"\lim_{x\to 0} \frac{\sin x}{x}", "1"),
            (r"\int x e^{x} dx", r"xe^{x}-e^{x}"),
            (r"\frac{d}{dx} x^2", "2x"),
        ):
            if not _compare(gold, answer):
                return f"sympy does not work: {gold} is not {answer}"
    except Exception as error:  # foreign code that does not fit this machine fails in any way
        return f"sympy cannot be imported: {type(error).__name__}: {error}"[:500]
    return "" if found == SYMPY else f"it needs sympy {SYMPY}, found {found}"


_STARTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.",
    "socket.",
)
_OF_SYMPY = "def monomial_"


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse what grading never needs; for `sys.addaudithook`, which cannot be undone.

    Raises:
        PermissionError: the event is one of those.
    """
    if event == "compile":
        source, file = args[0], str(args[1])
        text = source.decode(errors="replace") if isinstance(source, bytes) else str(source)
        # Modules that are imported late are compiled too, from files; and sympy writes functions
        # of its own for polynomials, which depend on nothing but the number of variables.
        if source is not None and not file.endswith(".py") and not text.startswith(_OF_SYMPY):
            raise PermissionError("grading compiles no text")
    elif event == "open":
        if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError("grading writes no file")
    elif event.startswith(_STARTS):
        raise PermissionError(f"grading has no use for {event}")


def decide(gold: str, answer: str) -> _Outcome:
    """Return whether two tidy texts are the same answer, status and reason."""
    try:
        return _compare(gold, answer), "ok", "compared by structure and value"
    except Unreadable as error:
        return False, "undecided", f"not readable: {error}"[:200]
    except Undecided as error:
        return False, "undecided", str(error)[:200]
    except MemoryError:
        return False, "error", "out of memory"
    except Exception as error:  # foreign code on hostile text: too deep, or its own faults
        return False, "error", type(error).__name__


def _compare(gold: str, answer: str) -> bool:
    """Compare; sympy is imported here, so that its absence is told and not raised."""
    from l2s_hpc.evaluation.grading.compare import compare

    return compare(gold, answer)


if __name__ == "__main__":
    serve()
