"""How far a task is: a small file that is replaced now and then, for people alone."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from l2s_hpc.records import Task
from l2s_hpc.task.usage import now

_SECONDS = 10.0


@dataclass(frozen=True)
class Turn:
    """What one candidate took of the main thread."""

    seconds: float
    tokens: int


class Progress:
    """Writes the file at once when a task begins, then at most every `_SECONDS`.

    Nothing is synced and no error is raised: a full disk is no reason to fail.
    """

    def __init__(self, path: Path, task: Task, host: str) -> None:
        self._path = path
        self._task = task
        self._host = host
        self._started = now()
        self._before: list[Turn] = []
        self._candidate, self._number, self._items = "", 0, 0
        self._since = self._generating = time.monotonic()
        self._written = -_SECONDS

    def begin(self, number: int, items: int) -> None:
        """Turn to the task's n-th candidate, from 0, that has so many answers to give."""
        self._number, self._items = number, items
        self._candidate = self._task.candidates[number].candidate
        self._since = self._generating = time.monotonic()
        self.tell(0, 0)

    def ready(self) -> None:
        """Hear that the engine is there, and the candidate's own time begins."""
        self._since = self._generating = time.monotonic()

    def tell(self, items_done: int, tokens: int) -> None:
        """Hear how many answers of the candidate are there, and how many tokens they have."""
        moment = time.monotonic()
        if not tokens:
            self._generating = moment
        if moment - self._written >= _SECONDS:
            self._written = moment
            self._write(items_done, tokens, moment)

    def generated(self, tokens: int) -> None:
        """Hear that all answers of the candidate are there."""
        self._before.append(Turn(time.monotonic() - self._since, tokens))

    def remove(self) -> None:
        """Take the file away: the task is over."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _write(self, items_done: int, tokens: int, moment: float) -> None:
        after = len(self._task.candidates) - self._number - 1
        left = seconds_left(
            self._before,
            Turn(moment - self._since, tokens),
            items_done / self._items if self._items else 0.0,
            after / self._task.workers,
        )
        running = moment - self._generating
        found = {
            "task": self._task.key,
            "host": self._host,
            "candidate": self._candidate,
            "candidates_done": self._number,
            "candidates": len(self._task.candidates),
            "items_done": items_done,
            "items": self._items,
            "tokens": tokens,
            "tokens_per_second": round(tokens / running, 1) if tokens and running else None,
            "started": self._started,
            "updated": now(),
            "expected_end": None if left is None else _in(left),
        }
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(found), encoding="utf-8")
            temporary.replace(self._path)


def seconds_left(before: Sequence[Turn], running: Turn, share: float, after: float) -> float | None:
    """Estimate how long a task goes on; None where too little is known yet.

    A candidate that is to come takes as long as those before. The running one needs the rest of
    their tokens; if it is the first, its answers say how far it is, which is too hopeful: the
    longest answers come last.

    Args:
        before: the candidates that were generated.
        running: the one that generates, until now.
        share: its answers that are there, 0 to 1.
        after: how many candidates come after it.
    """
    if before:
        whole = fmean(one.seconds for one in before)
        tokens = fmean(one.tokens for one in before)
        done = running.tokens / tokens if tokens else 0.0
        return whole * max(1.0 - done, 0.0) + whole * after
    left = running.seconds * (1.0 - share + after) / share if share > 0 else math.inf
    return left if math.isfinite(left) else None


def _in(seconds: float) -> str:
    """Return the time that it is in so many seconds."""
    moment = datetime.now(UTC).timestamp() + seconds
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
