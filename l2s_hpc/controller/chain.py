"""A detached controller as a chain of Slurm jobs: each link has its successor in the queue.

The successor waits for the end of this link, however that comes (`--dependency=singleton`): its
time limit, kill -9, an out-of-memory kill. Slurm's own requeue, after a preemption or the loss of
a node, starts the same link again; the successor then waits on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from l2s_hpc.cluster.detach import ControllerJob
from l2s_hpc.errors import SubmitError, Unreachable

_SETTLED_SECONDS = 60.0
"""A link that dies sooner has no successor: so a fault of every link cannot fill the queue."""

_FAREWELL_SECONDS = 120.0
_CHECK = 0.75
_ASK_SECONDS = 600.0
_RETRY_SECONDS = 10.0
_LONGEST_RETRY_SECONDS = 300.0


class Queue(Protocol):
    """What a link asks of Slurm; see `ControllerJobs`."""

    def standing(self) -> list[ControllerJob]: ...

    def submit(self) -> str: ...

    def cancel(self, jobs: Sequence[str] = ()) -> None: ...

    def seconds_left(self, job: str) -> float | None: ...


class Chain:
    """Keeps a successor in the queue, and ends this link before Slurm does.

    Args:
        queue: the controller jobs of the run.
        own: the id of the job that we are.
        minutes: its time limit, until Slurm says it.
        say: takes lines for the log.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        queue: Queue,
        own: str,
        minutes: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.successor = ""
        self._queue = queue
        self._own = own
        self._say = say
        self._clock = clock
        self._begun = clock()
        self._limit = minutes * 60.0
        self._ask_at = self._begun
        self._seen_at = -float("inf")
        self._retry_at = self._begun
        self._failures = 0

    @property
    def over(self) -> bool:
        """Whether this link shall end now: its time is nearly up, and a successor stands."""
        return bool(self.successor) and self._clock() >= self._farewell

    @property
    def patience(self) -> float:
        """The longest pause in seconds that misses nothing."""
        now = self._clock()
        coming = [moment - now for moment in (*self._milestones, self._retry_at) if moment > now]
        return max(min(coming, default=_RETRY_SECONDS), 1.0)

    def tend(self) -> None:
        """Do what is due: ask for the time limit, see to a successor."""
        now = self._clock()
        if now >= self._ask_at or self._farewell <= now < self._begun + self._limit:
            self._ask(now)
        passed = [milestone for milestone in self._milestones if milestone <= now]
        if passed and self._seen_at < passed[-1] and now >= self._retry_at:
            self._see_to_successor(now)

    def end(self) -> None:
        """Cancel the successors: nothing is left for them to do."""
        try:
            others = [job.id for job in self._queue.standing() if job.id != self._own]
            if others:
                self._queue.cancel(others)
        except Unreachable as error:
            self._say(f"the next link of the chain stays in the queue ({error.message}); it ends")

    @property
    def _farewell(self) -> float:
        return self._begun + self._limit - min(_FAREWELL_SECONDS, 0.1 * self._limit)

    @property
    def _milestones(self) -> tuple[float, float, float]:
        """When a successor is seen to: once we seem healthy, and again lest it has vanished."""
        first = self._begun + min(_SETTLED_SECONDS, 0.1 * self._limit)
        return first, self._begun + _CHECK * self._limit, self._farewell

    def _ask(self, now: float) -> None:
        """Ask for the time limit: users may change it."""
        self._ask_at = now + _ASK_SECONDS
        try:
            left = self._queue.seconds_left(self._own)
        except Unreachable:
            return
        if left is not None:
            self._limit = now - self._begun + left

    def _see_to_successor(self, now: float) -> None:
        try:
            others = [job for job in self._queue.standing() if job.id != self._own]
            held = [job.id for job in others if job.state == "stuck"]
            if held:
                self._queue.cancel(held)
            waiting = [job.id for job in others if job.state != "stuck"]
            found = waiting[-1] if waiting else self._queue.submit()
        except (Unreachable, SubmitError) as error:
            if not self._failures:
                self._say(f"the next link of the chain cannot be submitted yet: {error.message}")
            pause = min(_RETRY_SECONDS * 2.0**self._failures, _LONGEST_RETRY_SECONDS)
            self._retry_at = now + min(pause, max(0.05 * self._limit, 1.0))
            self._failures = min(self._failures + 1, 10)
            return
        self._seen_at, self._retry_at, self._failures = now, now, 0
        if found != self.successor:
            self._say(f"job {found} goes on when this one, job {self._own}, ends")
        self.successor = found
