"""The timing of a chain of controller jobs, against a queue of words and a clock that is moved."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from l2s_hpc.cluster.detach import ControllerJob
from l2s_hpc.controller.chain import Chain
from l2s_hpc.errors import LimitError, SubmitError, Unreachable

OWN = "10"


class Queue:
    """Slurm's queue of controller jobs, with faults."""

    def __init__(self, minutes: float | None = 10) -> None:
        self.now = 1000.0
        self.ends = None if minutes is None else self.now + 60 * minutes
        self.jobs = {OWN: "running"}
        self.submitted: list[float] = []
        self.fault: Exception | None = None
        self.calls = 0

    def clock(self) -> float:
        return self.now

    def _call(self) -> None:
        self.calls += 1
        if isinstance(self.fault, Unreachable):
            raise self.fault

    def standing(self) -> list[ControllerJob]:
        self._call()
        return [ControllerJob(job, state, "") for job, state in self.jobs.items()]

    def submit(self) -> str:
        self._call()
        if self.fault is not None:
            raise self.fault
        job = str(11 + len(self.submitted))
        self.submitted.append(self.now)
        self.jobs[job] = "pending"
        return job

    def cancel(self, jobs: Sequence[str] = ()) -> None:
        self._call()
        for job in jobs or list(self.jobs):
            del self.jobs[job]

    def seconds_left(self, job: str) -> float | None:
        self._call()
        return None if self.ends is None else self.ends - self.now


class Link:
    """A link of a chain on a queue, tended every second until it is over."""

    def __init__(self, queue: Queue, minutes: float = 10) -> None:
        self.queue = queue
        self.said: list[str] = []
        self.chain = Chain(queue, OWN, minutes, self.said.append, queue.clock)

    def live(self, seconds: float, pause: float = 1.0) -> bool:
        """Go on for so long; True if it was over before."""
        end = self.queue.now + seconds
        while self.queue.now < end:
            self.chain.tend()
            if self.chain.over:
                return True
            self.queue.now += min(pause, self.chain.patience)
        return False


def test_a_successor_stands_as_soon_as_the_link_seems_healthy() -> None:
    """Whatever ends a link after that (kill -9, no memory, its limit), the next one goes on."""
    link = Link(Queue(minutes=1440), minutes=1440)
    assert not link.live(59)
    assert not link.queue.submitted
    assert not link.live(5)
    assert link.queue.submitted == [1060.0]
    assert link.said == ["job 11 goes on when this one, job 10, ends"]
    assert link.chain.successor == "11"


def test_of_a_short_link_after_a_tenth_of_its_time() -> None:
    link = Link(Queue(minutes=1), minutes=1)
    assert link.live(100)
    assert link.queue.submitted == [1006.0]
    assert link.queue.now == 1054.0


def test_a_long_link_ends_two_minutes_before_its_limit() -> None:
    link = Link(Queue(minutes=1440), minutes=1440)
    assert link.live(90_000, pause=300)
    assert link.queue.now == pytest.approx(1000 + 1440 * 60 - 120, abs=1.5)
    assert len(link.queue.submitted) == 1


def test_slurm_is_asked_seldom() -> None:
    link = Link(Queue(minutes=1440), minutes=1440)
    link.live(90_000, pause=30)
    assert link.queue.calls < 1440 / 10 + 20


def test_a_successor_that_stands_already_is_taken() -> None:
    queue = Queue()
    queue.jobs["9"] = "pending"
    link = Link(queue)
    link.live(100)
    assert not queue.submitted and link.chain.successor == "9"


def test_a_successor_that_vanished_is_replaced() -> None:
    link = Link(Queue())
    link.live(100)
    del link.queue.jobs["11"]
    link.live(355)
    assert link.queue.submitted == [1060.0, 1450.0]
    del link.queue.jobs["12"]
    assert link.live(300)
    assert link.queue.submitted == [1060.0, 1450.0, 1540.0]


def test_a_successor_that_slurm_holds_after_a_failed_launch_is_replaced() -> None:
    queue = Queue()
    queue.jobs["9"] = "stuck"
    link = Link(queue)
    link.live(100)
    assert link.chain.successor == "11" and "9" not in queue.jobs


@pytest.mark.parametrize(
    "fault",
    [Unreachable("no answer"), SubmitError("refused"), LimitError("too many jobs")],
)
def test_a_refusal_is_said_once_and_tried_again(fault: Exception) -> None:
    queue = Queue()
    link = Link(queue)
    queue.fault = fault
    assert not link.live(400)
    assert len(link.said) == 1 and "cannot be submitted yet" in link.said[0]
    assert queue.calls < 40
    queue.fault = None
    assert not link.live(31)
    assert link.chain.successor == "11"


def test_without_a_successor_a_link_does_not_leave() -> None:
    queue = Queue()
    link = Link(queue)
    queue.fault = Unreachable("no answer")
    assert not link.live(598)
    queue.fault = None
    link.queue.now = 1570.0
    assert link.live(31)
    assert len(queue.submitted) == 1


def test_with_a_successor_a_link_leaves_although_slurm_is_away() -> None:
    queue = Queue()
    link = Link(queue)
    link.live(100)
    queue.fault = Unreachable("no answer")
    assert link.live(500)
    assert queue.now == pytest.approx(1540, abs=2)


def test_the_limit_is_slurms_not_the_sites() -> None:
    link = Link(Queue(minutes=20), minutes=10)
    assert link.live(2000)
    assert link.queue.now == pytest.approx(1000 + 1200 - 120, abs=1)


def test_a_limit_that_was_raised_meanwhile_counts() -> None:
    link = Link(Queue())
    link.live(300)
    assert link.queue.ends is not None
    link.queue.ends += 3600
    assert link.live(10_000)
    assert link.queue.now == pytest.approx(1000 + 600 + 3600 - 120, abs=2)


def test_without_a_limit_a_link_stays_and_has_a_successor() -> None:
    queue = Queue()
    queue.ends = float("inf")
    link = Link(queue)
    assert not link.live(100_000, pause=300)
    assert len(queue.submitted) == 1


def test_where_nobody_tells_the_limit_the_sites_counts() -> None:
    link = Link(Queue(minutes=None), minutes=10)
    assert link.live(2000)
    assert link.queue.now == pytest.approx(1540, abs=1)


def test_the_end_of_the_search_cancels_successors_and_not_itself() -> None:
    link = Link(Queue())
    link.live(100)
    link.chain.end()
    assert set(link.queue.jobs) == {OWN}


def test_the_end_of_the_search_does_not_depend_on_slurm() -> None:
    link = Link(Queue())
    link.live(100)
    link.queue.fault = Unreachable("no answer")
    link.chain.end()
    assert "stays in the queue" in link.said[-1]
