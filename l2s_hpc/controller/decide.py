"""What to do next: pure functions of a run's state and of what was observed. No clock, no disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from l2s_hpc.cluster.jobs import UNKNOWN_JOB, JobState
from l2s_hpc.errors import DamageError, IncompleteError
from l2s_hpc.records import Receipt
from l2s_hpc.store.state import AttemptState, RunState

MOST_ATTEMPTS = 20
"""Attempts of one candidate that came to nothing; those that somebody interrupted do not count."""


_NOBODYS_FAULT = ("PREEMPTED", "NODE_FAIL", "CANCELLED", UNKNOWN_JOB)
"""How Slurm may end a job for good without any fault of the candidate."""


@dataclass(frozen=True)
class Policy:
    """The settings that decisions depend on.

    `only` is a single evaluation of some candidates in place of a search (`l2s run --smoke`).
    """

    generations: int
    attempts: int
    failures: float
    references: Mapping[str, str]
    parents: Mapping[str, str]
    only: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Observed:
    """What the run directory and the executor show of live attempts.

    Attributes:
        receipts: by (evaluation, candidate, attempt); a damaged one as its error.
        jobs: the state of each task's job; `ended` only after the grace period.
        unsubmitted: batches with an intent that nobody submitted any more.
        found: jobs that stand under the name of a batch without a job.
    """

    receipts: Mapping[tuple[str, str, int], Receipt | DamageError]
    jobs: Mapping[str, JobState]
    unsubmitted: Sequence[str] = ()
    found: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Adopt:
    """Record the job that was found under a batch's name."""

    batch: str
    job: str


@dataclass(frozen=True)
class Abandon:
    """Give up a batch that was never submitted."""

    batch: str


@dataclass(frozen=True)
class Accept:
    """Verify an attempt's score table and let it count."""

    attempt: AttemptState
    receipt: Receipt


@dataclass(frozen=True)
class Fail:
    """Record that an attempt left no score table; `counted` ones lead to a penalty."""

    attempt: AttemptState
    kind: str
    message: str
    counted: bool


@dataclass(frozen=True)
class Penalise:
    """Give a candidate up in an evaluation."""

    evaluation: str
    candidate: str
    reason: str


@dataclass(frozen=True)
class Submit:
    """Evaluate candidates: (candidate, generation, next attempt)."""

    evaluation: str
    candidates: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Ask:
    """Ask the algorithm for this generation."""

    generation: int


@dataclass(frozen=True)
class Tell:
    """Record a generation's objectives."""

    generation: int


@dataclass(frozen=True)
class Stage:
    """Go on to the evaluation of this split."""

    evaluation: str


@dataclass(frozen=True)
class Fix:
    """Fix the final front and the named picks on the selection split."""


@dataclass(frozen=True)
class Complete:
    """All is done."""


Action = Adopt | Abandon | Accept | Fail | Penalise | Submit | Ask | Tell | Stage | Fix | Complete


def decide(state: RunState, observed: Observed, policy: Policy) -> list[Action]:
    """Return what to do now; nothing means wait, or that the run is complete.

    What came in is settled first; only then is something new begun.

    Raises:
        IncompleteError: the search must not go on: a parent cannot be evaluated, or too much fails.
    """
    settled = _settle(state, observed)
    if settled:
        return settled
    wanted = under_way(state, policy)
    if wanted is None:
        return [] if finished(state, policy) else [_begin(state, policy)]
    evaluation, candidates = wanted
    hopeless = _hopeless(state, evaluation, candidates, policy)
    if hopeless:
        return list(hopeless)
    _check_losses(state, evaluation, candidates, policy)
    missing = _missing(state, evaluation, candidates)
    if missing:
        return [Submit(evaluation, missing)]
    if not state.reopened and all(state.settled(evaluation, c) for c in candidates):
        return [_conclude(state, evaluation, policy)]
    return []


def finished(state: RunState, policy: Policy) -> bool:
    """Return whether nothing is left to do; a completed run whose generations grew is not."""
    return state.completed and not _grows(state, policy)


def _settle(state: RunState, observed: Observed) -> list[Action]:
    """Settle batches without a job, and attempts with a receipt or without hope of one."""
    actions: list[Action] = [Adopt(batch, job) for batch, job in (observed.found or {}).items()]
    for attempt in state.live_attempts():
        action = _outcome(attempt, observed)
        if action is not None:
            actions.append(action)
    return actions + [Abandon(batch) for batch in observed.unsubmitted]


def _outcome(attempt: AttemptState, observed: Observed) -> Action | None:
    """Judge one live attempt: a receipt first, then what is known of its job."""
    receipt = observed.receipts.get((attempt.evaluation, attempt.candidate, attempt.attempt))
    if isinstance(receipt, DamageError):
        return Fail(attempt, "damaged", receipt.message, counted=False)
    if receipt is not None and receipt.failure is not None:
        failure = receipt.failure
        return Fail(attempt, failure.kind, failure.message, counted=failure.kind != "interrupted")
    if receipt is not None:
        return Accept(attempt, receipt)
    job = observed.jobs.get(attempt.task) if attempt.batch not in observed.unsubmitted else None
    if job is not None and job.state == "ended":
        message = job.reason or "its job ended without a receipt"
        return Fail(attempt, "lost", message, counted=job.reason not in _NOBODYS_FAULT)
    if job is not None and job.state == "orphaned":
        return Fail(attempt, "orphaned", job.reason, counted=False)
    return None


def under_way(state: RunState, policy: Policy) -> tuple[str, list[str]] | None:
    """Return the evaluation under way and its candidates; None between two of them."""
    if state.reopened:
        evaluation = min(state.reopened)[0]
        return evaluation, sorted(c for name, c in state.reopened if name == evaluation)
    if policy.only is not None:
        return None if state.completed else (policy.only[0], list(policy.only[1]))
    if state.told < len(state.generations):
        generation = state.generations[-1]
        extra = policy.references.values() if len(state.generations) == 1 else ()
        return "search", list(dict.fromkeys([*extra, *generation.candidates]))
    if "report" in state.stages and not state.completed:
        return "report", list(state.stages["report"])
    if "selection" in state.stages and state.front is None:
        return "selection", list(state.stages["selection"])
    return None


def _begin(state: RunState, policy: Policy) -> Action:
    if _grows(state, policy):
        return Ask(len(state.generations))
    return Stage("report" if state.front is not None else "selection")


def _grows(state: RunState, policy: Policy) -> bool:
    """Whether there is another generation to come; after an empty one there is none."""
    exhausted = bool(state.generations) and not state.generations[-1].candidates
    more = len(state.generations) < policy.generations
    return more and not exhausted and policy.only is None


def _conclude(state: RunState, evaluation: str, policy: Policy) -> Action:
    if policy.only is not None:
        return Complete()
    if evaluation == "search":
        return Tell(len(state.generations) - 1)
    return Fix() if evaluation == "selection" else Complete()


def _hopeless(
    state: RunState, evaluation: str, candidates: Sequence[str], policy: Policy
) -> list[Penalise]:
    found = []
    for candidate in candidates:
        if state.settled(evaluation, candidate):
            continue
        tries = state.attempts.get((evaluation, candidate), [])
        counted = [attempt for attempt in tries if attempt.counted]
        if any(attempt.outcome == "live" for attempt in tries):
            continue
        vain = [a for a in tries if a.kind not in ("", "interrupted", "orphaned")]
        if len(counted) >= policy.attempts or len(vain) >= MOST_ATTEMPTS:
            reason = (
                f"{counted[-1].kind}: {counted[-1].message}" if counted else "too many attempts"
            )
            _refuse_if_parent(candidate, reason, policy)
            found.append(Penalise(evaluation, candidate, reason))
    return found


def _refuse_if_parent(candidate: str, reason: str, policy: Policy) -> None:
    for name, parent in policy.parents.items():
        if candidate == parent:
            raise IncompleteError(
                f"the parent '{name}' cannot be evaluated, and all is compared with it: {reason}",
                hint="mend the cause, raise site.attempts by one, and give the same command again",
            )


def _check_losses(
    state: RunState, evaluation: str, candidates: Sequence[str], policy: Policy
) -> None:
    lost = [c for c in candidates if (evaluation, c) in state.penalised]
    searching = evaluation == "search" and policy.only is None
    if searching and len(lost) > policy.failures * len(candidates):
        raise IncompleteError(
            f"{len(lost)} of {len(candidates)} candidates failed in generation "
            f"{len(state.generations) - 1}, more than search.failures = {policy.failures:g}; "
            f"the last reason: {state.penalised[evaluation, lost[-1]]}",
            hint="see the receipts under attempts/; raise --set search.failures to go on",
        )


def _missing(
    state: RunState, evaluation: str, candidates: Sequence[str]
) -> tuple[tuple[str, int, int], ...]:
    found = []
    for candidate in candidates:
        tries = state.attempts.get((evaluation, candidate), [])
        live = any(attempt.outcome == "live" for attempt in tries)
        if not live and not state.settled(evaluation, candidate):
            generation = state.first_seen.get(candidate, 0)
            found.append((candidate, generation, len(tries) + 1))
    return tuple(found)
