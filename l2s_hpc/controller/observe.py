"""What the run directory and the executor show; nothing here decides or changes anything."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from pydantic import ValidationError

from l2s_hpc.cluster.jobs import COMPLETING, Executor, JobState
from l2s_hpc.controller.judge import Observed
from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import process_start, read_json
from l2s_hpc.store.layout import AttemptPaths, RunPaths
from l2s_hpc.store.state import AttemptKey, AttemptState, BatchState, RunState

_FROZEN_SECONDS = 300.0
_LATE = JobState("unknown", "over; waiting for its table")


class Observer:
    """Looks at the batches that are not closed.

    Attributes:
        since: when each thing that is given time was first seen, in seconds since 1970. It is all
            that an observer remembers; another one may go on with it.
    """

    def __init__(
        self,
        paths: RunPaths,
        executor: Executor,
        grace: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.since: dict[str, float] = {}
        self._paths = paths
        self._executor = executor
        self._grace = grace
        self._clock = clock
        self._seen: set[str] = set()
        self._late: set[str] = set()

    def look(self, state: RunState) -> Observed:
        """Return what is to be seen of the open batches of a run."""
        self._seen, self._late = set(), set()
        live = list(state.live_attempts())
        receipts = self._receipts(live)
        jobs = self._jobs(state, receipts)
        # A job that ended between the two looks has left its receipt in between.
        receipts |= self._receipts(a for a in live if a.key not in receipts)
        jobs = {task: _LATE if task in self._late else job for task, job in jobs.items()}
        found, unsubmitted = self._without_job(state.open_batches)
        over = [a for a in live if (job := jobs.get(a.task)) and job.state in ("ended", "stuck")]
        observed = Observed(
            receipts=receipts,
            jobs=jobs,
            started={a.key: at.chunks() for a in over if (at := self._attempt(a)).owners()},
            unsubmitted=unsubmitted,
            found=found,
            lingering=self._lingering(state, jobs),
            now=self._clock(),
            overtaken=self._overtaken(over),
        )
        self.since = {what: since for what, since in self.since.items() if what in self._seen}
        return observed

    def _overtaken(self, attempts: Iterable[AttemptState]) -> tuple[AttemptKey, ...]:
        """Return those that their worker has left to its background, to begin the next one."""
        found: list[AttemptKey] = []
        last: dict[tuple[str, ...], AttemptKey] = {}
        for attempt in attempts:
            worker = self._worker(attempt)
            if worker is not None:
                if worker in last:
                    found.append(last[worker])
                last[worker] = attempt.key
        return tuple(found)

    def _worker(self, attempt: AttemptState) -> tuple[str, ...] | None:
        """Return which process of which task claimed an attempt last, if one did."""
        try:
            claim = read_json(self._attempt(attempt).owners()[-1])
            return attempt.task, *(str(claim[name]) for name in ("job", "host", "pid"))
        except (OSError, DamageError, LookupError, TypeError):
            return None

    def _jobs(
        self, state: RunState, receipts: Mapping[AttemptKey, Receipt | DamageError]
    ) -> dict[str, JobState]:
        """Ask the executor, if anything depends on what it says."""
        asked = {
            name: batch
            for name, batch in self._watched(state).items()
            if (batch.job is not None or batch.abandoned)
            and (not batch.live or any(_open(a, receipts) for a in batch.live))
        }
        if not state.open_batches or all(batch.abandoned for batch in asked.values()):
            return {}
        jobs = self._executor.watch(asked)
        live = {attempt.task for batch in asked.values() for attempt in batch.live}
        return {
            task: self._patient(task, job) if task in live else job for task, job in jobs.items()
        }

    def _watched(self, state: RunState) -> dict[str, BatchState]:
        """Return the open batches; between two evaluations all of them, for ghosts may come late.

        A slurmctld that was killed and restarted may start again what it had called completed.
        """
        between = not any(batch.live for batch in state.open_batches.values())
        return state.batches if between else state.open_batches

    def _patient(self, task: str, job: JobState) -> JobState:
        """Hold an end back until the grace period is over: a shared disk shows files late."""
        if job.state not in ("ended", "stuck") or self._waited(f"task {task}"):
            return job
        return JobState("unknown", "over; waiting for its receipt", job.node, job.job)

    def _waited(self, what: str) -> bool:
        """Return whether something has been so for the grace period."""
        self._seen.add(what)
        now = self._clock()
        return now - self.since.setdefault(what, now) >= self._grace

    def _receipts(
        self, attempts: Iterable[AttemptState]
    ) -> dict[AttemptKey, Receipt | DamageError]:
        return {
            attempt.key: receipt
            for attempt in attempts
            if (receipt := self._receipt(attempt)) is not None
        }

    def _receipt(self, attempt: AttemptState) -> Receipt | DamageError | None:
        paths = self._attempt(attempt)
        try:
            receipt = Receipt.model_validate(read_json(paths.receipt))
        except FileNotFoundError:
            return None
        except DamageError as error:
            return error
        except ValidationError as error:
            return DamageError(f"not a receipt: {error.errors()[0]['msg']}", path=paths.receipt)
        named = (receipt.evaluation, receipt.generation, receipt.candidate, receipt.attempt)
        if named != (attempt.evaluation, attempt.generation, attempt.candidate, attempt.attempt):
            return DamageError(f"the receipt of another attempt: {named}", path=paths.receipt)
        whole = paths.scores.exists() and paths.outputs.exists()
        # A shared disk may show a receipt before the tables that were written before it.
        if receipt.failure is None and not whole and not self._waited(f"table {paths.scores}"):
            self._late.add(attempt.task)
            return None
        return receipt

    def _attempt(self, attempt: AttemptState) -> AttemptPaths:
        return self._paths.attempt(
            attempt.evaluation, attempt.generation, attempt.candidate, attempt.attempt
        )

    def _lingering(
        self, state: RunState, jobs: Mapping[str, JobState]
    ) -> dict[str, tuple[str, ...]]:
        """Return the batches without live attempts: with jobs to be ended, or none if all is over.

        A job that has just written its receipt is given the grace period to end by itself. One that
        was told to end is told again only after another one.
        """
        found: dict[str, tuple[str, ...]] = {}
        for name, batch in self._watched(state).items():
            there = [jobs[task] for task in batch.tasks if task in jobs]
            if batch.live or not there:
                continue
            # What has no id cannot be ended: workers of a local controller, which end with it.
            alive = [j for j in there if j.state not in ("ended", "orphaned") and j.job]
            ghosts = batch.abandoned or name not in state.open_batches
            late = ghosts or (bool(alive) and self._waited(f"batch {name}"))
            if late:
                alive = [job for job in alive if job.reason != COMPLETING]
            needless = [job for job in alive if late or job.state == "stuck"]
            if not alive and name in state.open_batches:
                found[name] = ()
            elif needless and (ends := self._not_told(name, needless)):
                found[name] = ends
        return found

    def _not_told(self, batch: str, jobs: Iterable[JobState]) -> tuple[str, ...]:
        told = f"told {batch}"
        fresh = told not in self.since
        if self._waited(told):
            self.since.pop(told)
        return tuple(sorted({job.job for job in jobs if job.job})) if fresh else ()

    def _without_job(
        self, batches: Mapping[str, BatchState]
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Look up batches whose submission nobody recorded: the writer died, or is at it."""
        found, unsubmitted = {}, []
        for name, batch in batches.items():
            if batch.job is not None or batch.abandoned or self._writer_lives(batch):
                continue
            job = self._executor.find(batch)
            if job is not None:
                found[name] = job
            else:
                unsubmitted.append(name)
        return found, tuple(unsubmitted)

    def _writer_lives(self, batch: BatchState) -> bool:
        """Whether the controller that wrote the intent may still be submitting it.

        On this host its process is looked up, which may hang; another host's gets the grace period.
        """
        entry = batch.entry
        age = self._clock() - datetime.fromisoformat(entry.time).timestamp()
        if entry.host == socket.gethostname():
            others = entry.pid != os.getpid() and entry.process == process_start(entry.pid)
            return others and age < max(_FROZEN_SECONDS, self._grace)
        return age < self._grace


def _open(attempt: AttemptState, receipts: Mapping[AttemptKey, Receipt | DamageError]) -> bool:
    """Whether what becomes of an attempt depends on its job."""
    receipt = receipts.get(attempt.key)
    if receipt is None:
        return True
    return (
        isinstance(receipt, Receipt) and receipt.failure is not None and receipt.failure.unfinished
    )
