"""What became of an attempt, from its receipt and its job: a pure function of what was observed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from l2s_hpc.cluster.jobs import NO_ROOM_JOB, STUCK_JOB, UNKNOWN_JOB, JobState
from l2s_hpc.controller.actions import Accept, Action, Fail
from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.state import AttemptKey, AttemptState, RunState

_TAKEN_AWAY = ("PREEMPTED", "CANCELLED", "REVOKED", NO_ROOM_JOB)
_NODE_LOST = ("NODE_FAIL", "BOOT_FAIL", STUCK_JOB, UNKNOWN_JOB)
"""How Slurm may end a job for good without any fault of the candidate."""

_TIME_UP = ("TIMEOUT", "DEADLINE")
_OVER = ("ended", "orphaned", "stuck")
"""States of a job that nothing more comes of."""


@dataclass(frozen=True)
class Observed:
    """What the run directory and the executor show of the batches that are not closed.

    Attributes:
        receipts: of live attempts; a damaged one as its error.
        jobs: the state of each task's job; `ended` only after the grace period.
        started: live attempts that a node has begun, with the chunks that each has made durable.
        unsubmitted: batches with an intent that nobody submitted any more.
        found: jobs that stand under the name of a batch without a job.
        lingering: batches without a live attempt, and the jobs of theirs that should be gone by
            now; none where all are gone.
        now: the time, in seconds since 1970.
        overtaken: started ones whose worker has begun a later one of its task: they were generated,
            and only grading and writing were left.
    """

    receipts: Mapping[AttemptKey, Receipt | DamageError]
    jobs: Mapping[str, JobState]
    started: Mapping[AttemptKey, int] = field(default_factory=dict)
    unsubmitted: Sequence[str] = ()
    found: Mapping[str, str] = field(default_factory=dict)
    lingering: Mapping[str, Sequence[str]] = field(default_factory=dict)
    now: float = 0.0
    overtaken: Collection[AttemptKey] = ()


def outcome(state: RunState, attempt: AttemptState, observed: Observed) -> Action | None:
    """Judge one live attempt: a receipt first, then what is known of its job."""
    receipt = observed.receipts.get(attempt.key)
    if isinstance(receipt, DamageError):
        return Fail(attempt, "damaged", receipt.message, counted=False)
    job = observed.jobs.get(attempt.task) if attempt.batch not in observed.unsubmitted else None
    if receipt is None:
        return _without_receipt(state, attempt, job, observed)
    if receipt.failure is None:
        return Accept(attempt, receipt)
    failure, node, seconds = receipt.failure, receipt.host, receipt.lasted
    if not failure.unfinished:
        counted = not failure.of_node
        return Fail(attempt, failure.kind, failure.message, counted, node, seconds)
    # Slurm may start an interrupted task again: it goes on with the same attempt.
    if job is None or job.state not in _OVER:
        return None
    kind, counted = _interrupted(state, attempt, job, receipt, observed)
    message = f"{failure.message}; {job.reason}" if job.reason else failure.message
    return Fail(attempt, kind, message, counted, node, seconds, receipt.chunks)


def _interrupted(
    state: RunState, attempt: AttemptState, job: JobState, receipt: Receipt, observed: Observed
) -> tuple[str, bool]:
    """Return the kind of an interruption, and whether the candidate is to blame for it."""
    if _cancelled(state, attempt, job):
        return "cancelled", False
    told = receipt.failure is not None and receipt.failure.kind == "timeout"
    if job.reason in _TIME_UP or (told and job.reason not in _TAKEN_AWAY):
        alone = not _siblings_began(state, attempt, observed)
        # On another kind of GPU all chunks are made anew: it may add some and have fewer than ever.
        made = observed.started.get(attempt.key, 0)
        return "timeout", alone and not made and receipt.chunks <= _best_chunks(state, attempt)
    return "interrupted", False


def _cancelled(state: RunState, attempt: AttemptState, job: JobState) -> bool:
    """Whether somebody cancelled the task, and it was not our own `l2s stop`."""
    return job.reason == "CANCELLED" and not state.batches[attempt.batch].stopped


def _best_chunks(state: RunState, attempt: AttemptState) -> int:
    """Return how far attempts came until now: one that comes no further will never end.

    With the chunks that are kept, the next attempt comes further.
    """
    return max(a.chunks for a in state.attempts[attempt.evaluation, attempt.candidate])


def _siblings_began(state: RunState, attempt: AttemptState, observed: Observed) -> bool:
    """Whether other candidates of the task had a turn, and a part of its time."""
    batch = state.batches[attempt.batch]
    others = (a for a in batch.live if a.task == attempt.task and a is not attempt)
    return attempt.task in batch.begun or any(
        a.key in observed.started or a.key in observed.receipts for a in others
    )


def _without_receipt(
    state: RunState, attempt: AttemptState, job: JobState | None, observed: Observed
) -> Action | None:
    """Judge an attempt that left no receipt; what never began cannot be to blame."""
    if job is None or job.state not in _OVER:
        return None
    message = job.reason or "its job ended without a receipt"
    if job.state == "orphaned":
        return Fail(attempt, "orphaned", message, counted=False)
    if _cancelled(state, attempt, job):
        return Fail(attempt, "cancelled", "somebody cancelled its task", False, job.node)
    if job.reason in _TAKEN_AWAY:
        return Fail(attempt, "interrupted", message, False, job.node)
    if job.reason in _NODE_LOST:
        return Fail(attempt, "lost", message, False, job.node)
    shared = _siblings_began(state, attempt, observed)
    if attempt.key in observed.started and job.reason in _TIME_UP:
        made = observed.started[attempt.key]
        chunks = _best_chunks(state, attempt) + made
        return Fail(attempt, "timeout", message, not (shared or made), job.node, chunks=chunks)
    if attempt.key in observed.overtaken:
        message = f"its task ended while it was graded: {message}"
        chunks = _best_chunks(state, attempt) + observed.started.get(attempt.key, 0)
        return Fail(attempt, "interrupted", message, False, job.node, chunks=chunks)
    if attempt.key in observed.started:
        return Fail(attempt, "lost", message, True, job.node)
    if shared:
        return Fail(attempt, "interrupted", f"its task ended before its turn: {message}", False)
    return Fail(attempt, "not begun", message, False, job.node)
