"""Child processes that decide pairs, seen from the outside.

They are started by running `l2s_hpc.evaluation.grading.child` as a program, never by a fork, and
speak JSON lines over their pipes. One that takes too long is killed and replaced; the others go on
in the meantime.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from l2s_hpc.errors import L2SError, UserError
from l2s_hpc.records import GradeStatus

SYMPY: Final = "1.14.0"
SECONDS: Final = 3  # for one pair
START_SECONDS: Final = 120  # for importing sympy from a cold shared disk
PAIRS_PER_CHILD: Final = 5000  # sympy's caches grow with every pair
TRIES: Final = (
    2  # a child that dies is replaced once for a pair: it may have been killed from outside
)

_INSTALL: Final = f"in the nodes' Python: pip install --force-reinstall sympy=={SYMPY}"
_TRY: Final = (
    "what does `python -m l2s_hpc.evaluation.grading.child < /dev/null` say on that machine?"
)


@dataclass(frozen=True)
class Decision:
    """What was decided on a pair, and by what or why not.

    Attributes:
        correct: the answer is right; never true but with the status ok.
        status: as in score tables.
        reason: a few words.
    """

    correct: bool
    status: GradeStatus
    reason: str


class Pool:
    """A fixed number of child processes that decide pairs, started when they are first needed."""

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self.children: list[Child] = []

    def close(self) -> None:
        """Kill all children and wait for their end."""
        for child in self.children:
            child.kill()
        self.children = []

    def start(self) -> None:
        """Start the children that are missing, and wait until all are ready.

        Raises:
            UserError: a package is missing or another version.
            L2SError: a child does not start.
        """
        self._fill()
        while starting := [child for child in self.children if not child.ready]:
            self._hear(starting)

    def decide(self, pairs: Sequence[tuple[str, str]]) -> list[Decision]:
        """Return the decision on each pair of tidy texts.

        Raises:
            UserError: a package is missing or another version.
            L2SError: a child does not start.
        """
        if not pairs:
            return []
        self._fill()
        for child in [child for child in self.children if child.busy is not None]:
            self._replace(child)  # an exception ended the call before: its reply is not for us
        work = _Work(pairs)
        while len(work.done) < len(pairs):
            for child in self.children:
                if work.waiting and child.ready and child.busy is None:
                    self._give(child, work)
            self._settle(self._hear(self.children), work)
        return [work.done[n] for n in range(len(pairs))]

    def _fill(self) -> None:
        while len(self.children) < self._workers:
            self.children.append(Child())

    def _give(self, child: Child, work: _Work) -> None:
        number = work.waiting.popleft()
        work.tries[number] += 1
        try:
            child.ask(number, *work.pairs[number])
        except EOFError:
            self._settle([(child, number, None)], work)

    def _hear(self, children: Sequence[Child]) -> list[tuple[Child, int, Decision | None]]:
        """Wait for replies or deadlines; return what became of pairs (None: the child died)."""
        listening = [child for child in children if child.busy is not None or not child.ready]
        by_file = {child.replies.fileno(): child for child in listening}
        poll = select.poll()
        for file in by_file:
            poll.register(file, select.POLLIN)
        nearest = min(child.deadline for child in listening)
        heard = poll.poll(max(0.0, nearest - time.monotonic()) * 1000)
        news: list[tuple[Child, int, Decision | None]] = []
        for file, _ in heard:
            child = by_file[file]
            number = child.busy
            try:
                decision = child.hear()
            except EOFError:
                if number is None:
                    self.close()
                    raise L2SError("the grading process did not start", hint=_TRY) from None
                news.append((child, number, None))
            except L2SError:
                self.close()  # it has said why it does not start, and would say it only once
                raise
            else:
                if number is not None and decision is not None:
                    news.append((child, number, decision))
        now = time.monotonic()
        for child in listening:
            if child.deadline <= now and child.replies.fileno() not in dict(heard):
                if child.busy is None:
                    self.close()
                    raise L2SError("the grading process did not start", hint=_TRY)
                late = Decision(False, "timeout", f"not decided in {SECONDS} s")
                news.append((child, child.busy, late))
                self._replace(child)
        return news

    def _settle(self, news: list[tuple[Child, int, Decision | None]], work: _Work) -> None:
        for child, number, decision in news:
            if decision is None:
                self._replace(child)
                if work.tries[number] < TRIES:
                    work.waiting.appendleft(number)
                    continue
                decision = Decision(False, "error", "the grading process died of it")
            elif child.asked >= PAIRS_PER_CHILD and child in self.children:
                self._replace(child)
            work.done[number] = decision

    def _replace(self, child: Child) -> None:
        child.kill()
        self.children[self.children.index(child)] = Child()


@dataclass
class _Work:
    """The pairs of one call: those that wait, and what was decided."""

    pairs: Sequence[tuple[str, str]]
    waiting: deque[int] = field(init=False)
    tries: list[int] = field(init=False)
    done: dict[int, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.pairs)))
        self.tries = [0] * len(self.pairs)


class Child:
    """A grading process.

    Attributes:
        ready: it has started and found its packages.
        busy: the number of the pair that it decides, if any.
        deadline: when its start or its pair has taken too long, by the monotonic clock.
        asked: how many pairs it was given.
    """

    def __init__(self) -> None:
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            # -P: a file named random.py in the working directory is not imported.
            [sys.executable, "-P", "-m", "l2s_hpc.evaluation.grading.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A fixed order of hashes makes sympy's answers repeatable.
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )
        self._requests = cast(IO[bytes], self.process.stdin)
        self.replies = cast(IO[bytes], self.process.stdout)
        self._line = b""
        self.ready = False
        self.busy: int | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.asked = 0

    def ask(self, number: int, gold: str, answer: str) -> None:
        """Give it a pair; raises EOFError if it is dead."""
        try:
            self._requests.write(json.dumps([number, gold, answer]).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        self.busy, self.deadline = number, time.monotonic() + SECONDS
        self.asked += 1

    def hear(self) -> Decision | None:
        """Read what it says; return its decision once it is whole.

        Raises:
            EOFError: it died, or is out of step.
            UserError: it says that a package is missing or another version.
        """
        part = os.read(self.replies.fileno(), 65536)
        if not part:
            raise EOFError
        self._line += part
        if not self._line.endswith(b"\n"):
            return None
        if self._line.count(b"\n") > 1:
            raise EOFError
        said: Any = json.loads(self._line)
        self._line = b""
        if not self.ready:
            if said:
                raise UserError(f"the grader cannot start: {said}", hint=_INSTALL)
            self.ready = True
            return None
        number, correct, status, reason = said
        if number != self.busy:  # an exception came between a request and its reply
            raise EOFError
        self.busy = None
        return Decision(correct, status, reason)

    def kill(self) -> None:
        """End the process at once and leave no zombie."""
        self.process.kill()
        self.process.wait()
        self.replies.close()
        with contextlib.suppress(BrokenPipeError):  # a request that nobody read
            self._requests.close()
