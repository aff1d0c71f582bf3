"""The nodes and the shared disk of the simulated cluster.

What nodes write is written by the package's own worker with the scripted engine, so that claims,
chunks, tables and receipts are real. Faults stop the worker, damage what it wrote, or hide it.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, SIGUSR2

from l2s_hpc.records import CandidateTask, Evaluation, Protocol, Recipe, Task
from l2s_hpc.store.files import read_json
from l2s_hpc.store.layout import AttemptPaths, RunPaths
from l2s_hpc.store.state import AttemptKey
from l2s_hpc.task import node
from l2s_hpc.task.engines import Engine, Generated, Tell
from l2s_hpc.task.evaluate import Attempt, Fenced
from l2s_hpc.task.pipeline import Background, Ended
from l2s_hpc.task.scripted import ScriptedEngine
from l2s_hpc.task.worker import Interrupted, Worker

WARNED = {
    "time limit": SIGUSR2,
    "time limit near": SIGUSR2,
    "preempted": SIGTERM,
    "queued again": SIGTERM,
    "cancelled": SIGTERM,
}
"""Faults that send a signal first, so that the worker leaves a receipt."""

DAMAGES = ("torn", "flipped", "missing", "foreign", "repeated")

Later = Callable[[float, Callable[[], None]], None]
"""Plans an event for so many seconds later."""


class _Killed(BaseException):
    """The task was killed here."""


@dataclass
class Work:
    """An attempt under way: who does it where, and the claim that makes it theirs."""

    attempt: Attempt
    place: node.Job
    claim: Path

    @property
    def key(self) -> AttemptKey:
        return key_of(self.attempt.task)

    @property
    def candidate(self) -> tuple[str, str]:
        return self.attempt.task.evaluation, self.attempt.task.candidate

    @property
    def superseded(self) -> bool:
        """Whether somebody newer works on this candidate."""
        paths = self.attempt.paths
        later = paths.folder.with_name(str(self.attempt.task.attempt + 1))
        return later.exists() or any(owner > self.claim for owner in paths.owners())


class Disk:
    """The durable writes of controllers or of nodes, and what befalls one of those to come."""

    def __init__(self) -> None:
        self._plan: list[Callable[[], None] | None] = []

    def plan(self, write: int, event: Callable[[], None], times: int = 1) -> None:
        """Let something happen in the middle of a durable write: 0 is the next one."""
        self._plan = [None] * write + [event] * times

    def calm(self) -> None:
        self._plan = []

    def sync(self) -> None:
        event = self._plan.pop(0) if self._plan else None
        if event is not None:
            event()


def full() -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, "No space left on device")


class Nodes:
    """Works on attempts, and keeps what it wrote out of the controllers' sight for a while.

    It fails with an `AssertionError` if a worker writes that somebody newer has followed.

    Attributes:
        disk: the durable writes of all nodes. delay: the longest time that a new file is hidden.
        here: the node that acts now, or None.
        damaged: attempts whose results were damaged.
    """

    def __init__(
        self,
        paths: RunPaths,
        evaluations: Mapping[str, Evaluation],
        source: random.Random,
        later: Later,
    ) -> None:
        self.disk = Disk()
        self.delay = 0.0
        self.here: node.Job | None = None
        self.damaged: set[AttemptKey] = set()
        self._paths = paths
        self._evaluations = evaluations
        self._random = source
        self._later = later
        self._worker = _Worker(paths.folder)
        self._writer = _AtOnce()
        self._hidden: dict[Path, Path] = {}
        self._order = itertools.count()

    def task(self, key: str) -> Task:
        """Read a task as a node does."""
        return Task.model_validate(read_json(self._paths.task(key)))

    def claim(self, place: node.Job, task: CandidateTask) -> Work | None:
        """Begin an attempt; None if there is nothing to do.

        Raises:
            OSError: the disk is full.
        """
        with self._view(place, task):
            evaluation = self._evaluations[task.evaluation]
            attempt = Attempt(
                self._worker.info.id, self._paths, task, evaluation, writer=self._writer
            )
            if not attempt.claim():
                return None
            return Work(attempt, place, attempt.paths.owners()[-1])

    def do(self, work: Work, fault: str, chunks: int | None, damage: tuple[str, str] | None) -> str:
        """Work on an attempt as a worker does: to its end, or until a fault after some chunks.

        Returns:
            What became of the worker: `lives`, `no room`, or another end.
        """
        attempt, ending = work.attempt, "lives"
        with self._view(work.place, attempt.task):
            late, before = work.superseded, _stamps(attempt.paths.folder)
            if "unfenced" in fault:
                attempt.check_fence = lambda: None  # type: ignore[method-assign]
            self._worker.engine = _Engine(attempt.evaluation.protocol, fault, chunks)
            try:
                self._worker._attempt(attempt)
                self._worker.background.wait()
            except Ended as ended:
                ending = "no room" if isinstance(ended.error, OSError) else "ended"
            except (_Killed, Interrupted, Fenced):
                ending = "ended"
            except OSError:
                ending = "no room"
            if late and "unfenced" not in fault:
                assert _stamps(attempt.paths.folder) == before, "written by one who was followed"
            if damage is not None and ending == "lives":
                self.damaged.add(work.key)
                _damage(attempt.paths, *damage)
        return ending

    @contextmanager
    def _view(self, place: node.Job, task: CandidateTask) -> Iterator[None]:
        """Be on a node, which sees all files; what it writes, controllers see later."""
        paths = self._paths.attempt(task.evaluation, task.generation, task.candidate, task.attempt)
        for path, hidden in list(self._hidden.items()):
            if path.parent.exists():
                hidden.rename(path)
            else:
                self._hidden.pop(path).unlink()
        before = _stamps(paths.folder)
        self.here = place
        try:
            yield
        finally:
            self.here = None
            for path, hidden in list(self._hidden.items()):
                if path.exists():
                    path.rename(hidden)
                else:
                    del self._hidden[path]
            # One that stands where another one was seen already is never out of sight.
            new = _stamps(paths.folder).keys() - before.keys() if self.delay else ()
            for path in sorted(new):
                self._hide(path)

    def _hide(self, path: Path) -> None:
        hidden = self._paths.folder / "hidden" / str(next(self._order))
        hidden.parent.mkdir(exist_ok=True)
        path.rename(hidden)
        self._hidden[path] = hidden
        self._later(self._random.uniform(0.0, self.delay), lambda: self._show(path, hidden))

    def _show(self, path: Path, hidden: Path) -> None:
        if self._hidden.get(path) != hidden:
            return
        del self._hidden[path]
        if path.parent.exists():
            hidden.rename(path)
        else:
            hidden.unlink()


class _Worker(Worker):
    """The package's worker, with an engine that is given to it."""

    def _open(self, protocol: Protocol, recipe: Recipe) -> Engine:
        assert self.engine is not None
        return self.engine


class _AtOnce(Background):
    """Writes chunks on the thread that asks for it: a simulation has no second one."""

    def give(self, work: Callable[[], None]) -> None:
        work()

    def settled(self, seconds: float | None = None) -> bool:
        return True


class _Engine(ScriptedEngine):
    """The scripted engine; after some chunks of one attempt a fault strikes, None: never."""

    def __init__(self, protocol: Protocol, fault: str, chunks: int | None) -> None:
        super().__init__(protocol)
        self._struck = fault
        self._left = chunks

    def load(self, recipe: Recipe) -> Mapping[str, float]:
        found = super().load(recipe)
        self._strike()
        return found

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int] | None = None,
        tell: Tell | None = None,
    ) -> list[list[Generated]]:
        self._strike()
        if self._left is not None:
            self._left -= 1
        return super().generate(prompts, limits, tell)

    def _strike(self) -> None:
        if self._left != 0:
            return
        if self._struck == "exception":
            raise RuntimeError("scripted")
        if self._struck in WARNED:
            raise Interrupted(WARNED[self._struck])
        raise _Killed


def key_of(task: CandidateTask) -> AttemptKey:
    """Return what an attempt is known by."""
    return task.evaluation, task.candidate, task.attempt


def _damage(paths: AttemptPaths, what: str, how: str) -> None:
    """Damage results: as a crash, a bad disk, or a confused script would."""
    files = {"table": paths.scores, "outputs": paths.outputs, "receipt": paths.receipt}
    others = paths.folder.parents[2].glob("*/*/*/receipt.json")
    other = next((p.parent for p in others if p.parents[1] != paths.folder.parent), None)
    for path in files.values() if what == "all" else [files[what]]:
        if not path.exists():
            continue
        content = path.read_bytes()
        middle = len(content) // 2
        foreign = other / path.name if other is not None else path
        damaged = {
            "torn": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "repeated": content * 2,
            "foreign": foreign.read_bytes() if foreign.exists() and foreign != path else b"",
        }
        # A file of its own: the damaged one may be an accepted table's other name.
        path.unlink()
        if how in damaged:
            path.write_bytes(damaged[how])


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return what tells files of an attempt from later ones; claims are always seen."""
    paths = (path for path in folder.glob("*") if not path.name.startswith("owner"))
    return {path: ((info := path.stat()).st_mtime_ns, info.st_ino) for path in paths}
