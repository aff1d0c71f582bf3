"""What the run directory and the executor show; nothing here decides or changes anything."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pydantic import ValidationError

from l2s_hpc.cluster.jobs import Executor, JobState
from l2s_hpc.controller.decide import Observed
from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import process_start, read_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import AttemptState, BatchState, RunState


class Observer:
    """Looks at live attempts; remembers only since when a job seems over, for the grace period."""

    def __init__(self, paths: RunPaths, executor: Executor, grace: float) -> None:
        self._paths = paths
        self._executor = executor
        self._grace = grace
        self._over_since: dict[str, float] = {}

    def look(self, state: RunState) -> Observed:
        """Return what is to be seen of the live attempts of a run."""
        live = list(state.live_attempts())
        receipts = self._receipts(live)
        waiting = [a for a in live if (a.evaluation, a.candidate, a.attempt) not in receipts]
        batches = {name: state.batches[name] for name in sorted({a.batch for a in waiting})}
        submitted = {name: batch for name, batch in batches.items() if batch.job is not None}
        jobs = self._patient(self._executor.watch(submitted)) if submitted else {}
        # A job that ended between the two looks has left its receipt in between.
        receipts |= self._receipts(waiting)
        found, unsubmitted = self._without_job(batches)
        return Observed(receipts, jobs, unsubmitted, found)

    def _receipts(
        self, attempts: Iterable[AttemptState]
    ) -> dict[tuple[str, str, int], Receipt | DamageError]:
        return {
            (a.evaluation, a.candidate, a.attempt): receipt
            for a in attempts
            if (receipt := self._receipt(a)) is not None
        }

    def _receipt(self, attempt: AttemptState) -> Receipt | DamageError | None:
        paths = self._paths.attempt(
            attempt.evaluation, attempt.generation, attempt.candidate, attempt.attempt
        )
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
        return receipt

    def _patient(self, jobs: Mapping[str, JobState]) -> dict[str, JobState]:
        """Hold back `ended` until the grace period is over: a shared disk shows files late."""
        now = time.monotonic()
        found = {}
        for task, job in jobs.items():
            if job.state == "ended":
                since = self._over_since.setdefault(task, now)
                if now - since < self._grace:
                    job = JobState("unknown", "over; waiting for its receipt", job.node)
            else:
                self._over_since.pop(task, None)
            found[task] = job
        return found

    def _without_job(
        self, batches: Mapping[str, BatchState]
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Look up batches whose submission nobody recorded: the writer died, or is at it."""
        found, unsubmitted = {}, []
        for name, batch in batches.items():
            if batch.job is not None or self._writer_lives(batch):
                continue
            job = self._executor.find(batch)
            if job is not None:
                found[name] = job
            else:
                unsubmitted.append(name)
        return found, tuple(unsubmitted)

    def _writer_lives(self, batch: BatchState) -> bool:
        """Whether the controller that wrote the intent may still be submitting it.

        On this host its process is looked up; another host's gets the grace period.
        """
        entry = batch.entry
        if entry.host == socket.gethostname():
            return entry.pid != os.getpid() and entry.process == process_start(entry.pid)
        age = datetime.now(UTC) - datetime.fromisoformat(entry.time)
        return age.total_seconds() < self._grace
