"""A simulated Slurm cluster in virtual time: an executor for tests and for the scale bench.

Nothing sleeps and no process starts. Faults strike at the command of a test, or by chance.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from l2s_hpc.cluster.jobs import JobState
from l2s_hpc.cluster.watch import Row, task_states
from l2s_hpc.controller.resolve import Resolved, load, resolve
from l2s_hpc.controller.start import _create, _record_start
from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import NO_ROOM_EXIT, LimitError, Unreachable
from l2s_hpc.records import Evaluation
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo
from l2s_hpc.store.state import AttemptKey, BatchState
from l2s_hpc.task import node
from tests.simulated_nodes import DAMAGES, Disk, Nodes, Work, key_of

STRIKES = {
    "killed": ("FAILED", False),
    "out of memory": ("OUT_OF_MEMORY", False),
    "node lost": ("NODE_FAIL", False),
    "node lost, queued again": ("NODE_FAIL", True),
    "time limit": ("TIMEOUT", False),
    "time limit near": ("FAILED", False),
    "preempted": ("PREEMPTED", False),
    "queued again": ("PREEMPTED", True),
    "cancelled": ("CANCELLED", False),
}
"""How Slurm ends a running job: its last state, and whether it is queued again."""

BLAMED = ("killed", "out of memory", "exception", "time limit", "time limit near")
"""Those that look like the candidate's own fault."""

LATE = ("late", "late, unfenced", "late, queued again", "late, queued again, unfenced")
"""Slurm says that the job is over, and its Python runs on and writes later; an unfenced one looked
for a newer one just before it froze."""

GHOSTS = ("ghost", "ghost later")
"""A job that has ended well comes back, at once or later, and is held for ever."""

ALL = (*STRIKES, *LATE, *DAMAGES, *GHOSTS, "exception")

GRACE = 60.0
"""The site's grace period, as it is by default."""

_GHOST = "launch failed requeued held"
_STARTED = 1_800_000_000.0


class Crash(BaseException):
    """The controller was killed here."""


@dataclass
class Job:
    """One element of an array.

    Attributes:
        turn: grows whenever it starts or ends; what an older turn had planned is void.
        restarts: how often Slurm queued it again.
        status: the wait status of its end.
        avoid: nodes that it shall not run on.
        void: its batch had been given up before Slurm took it.
        work: what it works on now. done: what it has left a result of.
        damage: what becomes of the next result that it writes: (of what, how).
    """

    id: str
    batch: str
    index: int
    key: str
    avoid: Sequence[str] = ()
    state: str = "PENDING"
    node: str = ""
    reason: str = ""
    turn: int = 0
    restarts: int = 0
    status: int = 0
    ended: float = 0.0
    void: bool = False
    work: Work | None = None
    done: set[AttemptKey] = field(default_factory=set)
    damage: tuple[str, str] | None = None

    @property
    def live(self) -> bool:
        return self.state in ("PENDING", "RUNNING")

    @property
    def held(self) -> bool:
        return self.state == "PENDING" and self.reason == _GHOST


@dataclass
class Settings:
    """How the cluster behaves, in virtual seconds.

    Attributes:
        queue: how long a job pends, about. candidate: how long a candidate takes, about.
        delay: the longest time that the shared disk hides a new file from controllers.
        memory: how long Slurm remembers an ended job (MinJobAge).
        most_jobs: live jobs that it takes; 0 is no limit.
        faults: the share of candidates' turns that meet a fault by chance, of these kinds, and
            at most so many a candidate.
        checks: whether each submission is checked, which reads the whole journal.
    """

    queue: float = 5.0
    candidate: float = 60.0
    delay: float = 0.0
    memory: float = 300.0
    nodes: int = 4
    most_tasks: int = 1000
    most_jobs: int = 0
    faults: float = 0.0
    most_faults: int = 1
    kinds: Sequence[str] = ALL
    checks: bool = True


@dataclass(frozen=True)
class Seat:
    """Where a controller runs."""

    host: str
    pid: int


def crash() -> None:
    raise Crash


class Cluster:
    """The cluster and its nodes; it outlives controllers, and several may use it at once.

    It fails with an `AssertionError` at once if something is submitted that is under way already.

    Attributes:
        now: the time. down: whether Slurm gives no answer.
        controllers: the durable writes of all controllers.
        on_submit: what happens to the next submission, in place of its being taken.
        blamed: attempts that a fault struck which looks like their own.
    """

    def __init__(
        self,
        paths: RunPaths,
        evaluations: Mapping[str, Evaluation],
        source: random.Random,
        settings: Settings | None = None,
    ) -> None:
        self.paths = paths
        self.settings = settings or Settings()
        self.now = _STARTED
        self.down = False
        self.controllers = Disk()
        self.on_submit: Callable[[Callable[[], str]], str] | None = None
        self.blamed: set[AttemptKey] = set()
        self._random = source
        self._struck: Counter[tuple[str, str]] = Counter()
        self._jobs: dict[str, list[Job]] = {}
        self._live: dict[str, Job] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._number = itertools.count(1001)
        self._seat = Seat("login1", 1)
        self._alive = {1}
        self.nodes = Nodes(paths, evaluations, source, self._at)
        self.nodes.delay = self.settings.delay

    # What a controller asks of it

    @property
    def most_tasks(self) -> int:
        return self.settings.most_tasks

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        def take() -> str:
            return self._take(batch, tasks, avoid)

        hook, self.on_submit = self.on_submit, None
        return hook(take) if hook is not None else take()

    def find(self, batch: BatchState) -> str | None:
        rows = self._squeue([batch.name])
        return rows[0].job if rows else None

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        tasks = {name: batch.tasks for name, batch in batches.items()}
        return task_states(tasks, self._squeue(list(tasks)))

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        self._answer()
        self._cancel(j for j in self.live() if j.batch == batch and j.id in jobs)

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        self._answer()
        self._cancel(j for j in self.live() if j.batch in batches)

    def close(self) -> None:
        """Jobs go on."""

    # What a test does with it

    def live(self) -> list[Job]:
        """Return the jobs that pend or run."""
        return list(self._live.values())

    def running(self) -> list[Job]:
        return [job for job in self._live.values() if job.state == "RUNNING"]

    def advance(self, seconds: float) -> None:
        """Let time pass, and happen what is due."""
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            time, _, event = heapq.heappop(self._events)
            self.now = max(time, self.now)
            event()
        self.now = max(until, self.now)

    def strike(self, job: Job, fault: str, chunks: int = 0) -> None:
        """Let a fault strike a running job, after it finished some more chunks."""
        if job.state != "RUNNING":
            return
        if fault in BLAMED and job.work is not None:
            self.blamed.add(job.work.key)
        if fault in DAMAGES:
            job.damage = (self._random.choice(["table", "outputs", "receipt", "all"]), fault)
        elif fault in LATE:
            self._late(job, fault, again="again" in fault)
        elif fault == "exception":
            self._finish(job, fault, chunks)
        elif fault in GHOSTS:
            self._ghost(job, self._random.uniform(0.0, 100.0) if "later" in fault else 0.0)
        else:
            state, again = STRIKES[fault]
            self._work(job, fault, chunks)
            self._end(job, state)
            if again:
                self._requeue(job)

    def cancel_by_hand(self, job: Job) -> None:
        """The user cancels a job."""
        self._cancel([job])

    def forget(self) -> None:
        """Slurm forgets every job that has ended."""
        for jobs in self._jobs.values():
            jobs[:] = [job for job in jobs if job.live]

    def heal(self) -> None:
        """From now on all is well."""
        self.down, self.on_submit = False, None
        self.controllers.calm()
        self.nodes.disk.calm()
        self.nodes.delay = 0.0
        self.settings = replace(self.settings, most_jobs=0, faults=0.0)
        for job in self._live.values():
            job.damage = None

    @contextmanager
    def seat(self, seat: Seat) -> Iterator[None]:
        """Let what is done within be done by a controller there."""
        before, self._seat = self._seat, seat
        self._alive.add(seat.pid)
        try:
            yield
        finally:
            self._seat = before

    @property
    def acting(self) -> Seat:
        """The controller that acts now."""
        return self._seat

    def died(self, seat: Seat) -> None:
        self._alive.discard(seat.pid)

    @contextmanager
    def seams(self) -> Iterator[None]:
        """Let clock, processes, disk and Slurm of the package be the simulated ones."""
        clock = SimpleNamespace(now=self._datetime, fromisoformat=datetime.fromisoformat)
        system = SimpleNamespace(getpid=lambda: self._seat.pid)
        network = SimpleNamespace(gethostname=lambda: self._seat.host)
        nobody = SimpleNamespace(cancel=lambda: None, standing=lambda: ())
        with (
            mock.patch("l2s_hpc.store.files._fsync", self._sync),
            mock.patch("l2s_hpc.task.evaluate.job", lambda: self.nodes.here),
            mock.patch.multiple(
                "l2s_hpc.controller.control",
                make_executor=lambda *_: self,
                ControllerJobs=lambda *_: nobody,
                time=SimpleNamespace(sleep=self.advance),
            ),
            mock.patch("l2s_hpc.store.journal.datetime", clock),
            mock.patch.multiple(
                "l2s_hpc.store.journal",
                os=system,
                socket=network,
                process_start=self._process_start,
            ),
            mock.patch.multiple(
                "l2s_hpc.controller.observe",
                os=system,
                socket=network,
                process_start=self._process_start,
            ),
        ):
            yield

    def _datetime(self, zone: tzinfo) -> datetime:
        return datetime.fromtimestamp(self.now, zone)

    def _process_start(self, pid: int) -> str:
        return "1" if pid in self._alive else ""

    def _sync(self, path: Path) -> None:
        """Stands in for fsync: where a writer can be killed, or find the disk full."""
        (self.controllers if self.nodes.here is None else self.nodes.disk).sync()

    # Slurm

    def _answer(self) -> None:
        if self.down:
            raise Unreachable("Unable to contact slurm controller (connect failure)")

    def _take(self, batch: str, tasks: Sequence[str], avoid: Sequence[str]) -> str:
        """Take a job as sbatch does, or refuse it."""
        self._answer()
        if self.settings.most_jobs and len(self._live) + len(tasks) > self.settings.most_jobs:
            raise LimitError("QOSMaxSubmitJobPerUserLimit")
        number = str(next(self._number))
        void = self.settings.checks and self._abandoned(batch)
        if self.settings.checks and not void:
            assert not self._doubled(tasks), f"{batch} is under way already"
        for index, key in enumerate(tasks):
            job = Job(f"{number}_{index}", batch, index, key, avoid, void=void)
            self._jobs.setdefault(batch, []).append(job)
            self._queue(job)
        return number

    def _doubled(self, tasks: Sequence[str]) -> bool:
        """Whether a job works on a candidate of these tasks, or will."""
        under_way = {
            (candidate.evaluation, candidate.candidate)
            for job in self._live.values()
            if not job.held and not job.void
            for candidate in self.nodes.task(job.key).candidates
            if key_of(candidate) not in job.done
        }
        wanted = [candidate for key in tasks for candidate in self.nodes.task(key).candidates]
        return any((candidate.evaluation, candidate.candidate) in under_way for candidate in wanted)

    def _abandoned(self, batch: str) -> bool:
        """Whether a batch was given up: by one who could not know that its writer lives."""
        by = {
            event["event"]: entry
            for entry in Journal(self.paths.journal).refresh()
            for event in entry.events
            if event.get("batch") == batch
        }
        if "abandoned" not in by:
            return False
        intent, given_up = by["intent"], by["abandoned"]
        times = [datetime.fromisoformat(entry.time) for entry in (intent, given_up)]
        frozen = (times[1] - times[0]).total_seconds() >= 300
        assert intent.host != given_up.host or frozen, "given up though its controller lives"
        assert (times[1] - times[0]).total_seconds() >= GRACE, "given up too early"
        return True

    def _squeue(self, names: Sequence[str]) -> list[Row]:
        self._answer()
        oldest = self.now - self.settings.memory
        found = []
        for name in names:
            jobs = self._jobs.get(name, [])
            jobs[:] = [job for job in jobs if job.live or job.ended >= oldest]
            found += [
                Row(name, j.id.split("_")[0], j.index, j.state, j.node, j.reason, True, j.status)
                for j in jobs
            ]
        return found

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def _in_turn(self, job: Job, seconds: float, event: Callable[[], None]) -> None:
        """Plan an event of this turn of a job."""
        turn = job.turn

        def unless_void() -> None:
            if job.turn == turn:
                event()

        self._at(seconds * self._random.uniform(0.5, 1.5), unless_void)

    def _queue(self, job: Job) -> None:
        self._live[job.id] = job
        job.state, job.reason, job.status = "PENDING", "Priority", 0
        self._in_turn(job, self.settings.queue, lambda: self._start(job))

    def _requeue(self, job: Job) -> None:
        job.restarts += 1
        self._queue(job)

    def _start(self, job: Job) -> None:
        job.state, job.reason = "RUNNING", "None"
        job.turn += 1
        nodes = [f"n{number}" for number in range(self.settings.nodes)]
        job.node = self._random.choice([n for n in nodes if n not in job.avoid] or nodes)
        self._begin(job)

    def _end(self, job: Job, state: str) -> None:
        job.state, job.reason, job.ended, job.work = state, "None", self.now, None
        job.turn += 1
        self._live.pop(job.id, None)

    def _cancel(self, jobs: Iterator[Job] | Sequence[Job]) -> None:
        for job in list(jobs):
            if job.state == "RUNNING":
                self.strike(job, "cancelled")
            else:
                self._end(job, "CANCELLED")

    def _late(self, job: Job, fault: str, again: bool) -> None:
        work, damage = job.work, job.damage
        self._end(job, "NODE_FAIL")
        if work is not None:
            seconds = self._random.uniform(0.0, 10 * self.settings.candidate)
            self._at(seconds, lambda: self.nodes.do(work, fault, None, damage) and None)
        if again:
            self._requeue(job)

    def _ghost(self, job: Job, seconds: float) -> None:
        """A job that is done comes back: slurmctld had died, and remembers it as not begun."""
        self._work(job, "", None)
        self._end(job, "COMPLETED")

        def come_back() -> None:
            job.state, job.reason, job.restarts = "PENDING", _GHOST, job.restarts + 1
            self._live[job.id] = job
            if job not in self._jobs[job.batch]:
                self._jobs[job.batch].append(job)

        self._at(seconds, come_back)

    # What jobs do

    def _begin(self, job: Job) -> None:
        """Claim the next candidate and work on it, or end well."""
        place = node.Job(f"{job.id}-{job.turn}", job.id, job.restarts, job.node)
        for candidate in self.nodes.task(job.key).candidates:
            try:
                job.work = self.nodes.claim(place, candidate)
            except OSError:
                self._no_room(job)
                return
            if job.work is not None:
                self._in_turn(job, self.settings.candidate, lambda: self._meet(job))
                return
            job.done.add(key_of(candidate))
        self._end(job, "COMPLETED")

    def _no_room(self, job: Job) -> None:
        self._end(job, "FAILED")
        job.status = NO_ROOM_EXIT << 8

    def _meet(self, job: Job) -> None:
        """A candidate's time is over: it ends well, unless a fault strikes by chance."""
        if job.work is None:
            return
        fault, candidate = "", job.work.candidate
        struck = self._struck[candidate]
        if struck < self.settings.most_faults and self._random.random() < self.settings.faults:
            fault = self._random.choice(self.settings.kinds)
            self._struck[candidate] += 1
            self.strike(job, fault, self._random.randrange(3))
        if job.state == "RUNNING" and fault != "exception":
            self._finish(job, "", None)

    def _finish(self, job: Job, fault: str, chunks: int | None) -> None:
        match self._work(job, fault, chunks):
            case "lives":
                self._begin(job)
            case "no room":
                self._no_room(job)
            case _:
                self._end(job, "FAILED")

    def _work(self, job: Job, fault: str, chunks: int | None) -> str:
        if job.work is None:
            return "lives"
        damage, job.damage = job.damage, None
        ending = self.nodes.do(job.work, fault, chunks, damage)
        if ending == "lives":
            job.done.add(job.work.key)
        return ending


class Simulation:
    """A run on a simulated cluster, and the controllers that drive it."""

    def __init__(
        self,
        paths: RunPaths,
        info: RunInfo,
        resolved: Resolved,
        source: random.Random,
        settings: Settings | None = None,
    ) -> None:
        self.paths = paths
        self.cluster = Cluster(paths, resolved.evaluations, source, settings)
        self._info = info
        self._resolved = resolved

    def start(self, seat: Seat) -> Controller:
        """Give the command there: a new controller, which sends again what was cancelled."""
        with self.cluster.seat(seat):
            controller = Controller(
                self.paths, self._info, self._resolved, self.cluster, lambda: self.cluster.now
            )
            said = {"by_user": True, "resubmit": True}
            _record_start(controller, self._info, self._resolved, "l2s run", said)
        return controller

    def finish(self, controller: Controller, seat: Seat, steps: int = 2000) -> None:
        """Step until the run is complete."""
        for _ in range(steps):
            if controller.finished:
                return
            with self.cluster.seat(seat):
                acted = controller.step()
            if not acted:
                self.cluster.advance(30.0)
        raise AssertionError(f"not complete after {steps} steps: {controller.waiting}")


def prepare(folder: Path, job: Path, site: Path, *settings: str) -> tuple[RunInfo, Resolved]:
    """Make a run directory, with nothing done yet."""
    resolved = resolve(*load(str(job), str(site), list(settings)))
    return _create(RunPaths(folder), resolved, "l2s run"), resolved
