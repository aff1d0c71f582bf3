"""What to do next: pure functions of a run's state and of what was observed. No clock, no disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from l2s_hpc.controller.actions import (
    Abandon,
    Accept,
    Action,
    Adopt,
    Close,
    Complete,
    End,
    Fail,
    Penalise,
    Submit,
)
from l2s_hpc.controller.course import begin, conclude, finished, under_way
from l2s_hpc.controller.judge import Observed, outcome
from l2s_hpc.controller.policy import Policy
from l2s_hpc.errors import IncompleteError
from l2s_hpc.records import otherwise
from l2s_hpc.store.state import AttemptState, RunState

MOST_ATTEMPTS = 20
"""Attempts of one candidate that came to nothing; those that somebody interrupted do not count."""

_INTERRUPTIONS = ("interrupted", "orphaned", "cancelled", "not begun", "device", "version")
"""Failures that say nothing of the candidate."""

_NO_FAULT = ("interrupted", "timeout")
"""Failures after which a candidate goes on where it was; those that count are penalised before."""

_NOT_THE_NODES = ("interrupted", "orphaned", "cancelled", "timeout", "merge")
"""Failures that say nothing of the node."""

MOST_STARTS = 3
"""Tasks of one candidate in a row that ended before anything of them began, or as many in all that
ran on another device or engine than the run's; then all pauses."""

_MADE_OTHERWISE = {
    "device": (
        "another kind of GPU",
        "name the GPU in site.gres or site.constraint, or accept both with "
        "--set site.allow_mixed_gpus=true; if the run's first table came from the rarer GPU, start "
        "a new run on the other kind (--run)",
    ),
    "version": (
        "another version of the engine",
        "install the version of the run on the nodes, or start a new run (--run)",
    ),
}
"""What to say of what cannot be compared with the run's first table."""


def decide(state: RunState, observed: Observed, policy: Policy) -> list[Action]:
    """Return what to do now; nothing means wait, or that the run is complete.

    What came in is settled first; only then is something new begun.

    Raises:
        IncompleteError: the search must not go on: a parent cannot be evaluated, too much fails,
            or somebody cancelled tasks.
    """
    settled = _settle(state, observed, policy)
    ends: list[Action] = [
        End(batch, tuple(jobs)) for batch, jobs in observed.lingering.items() if jobs
    ]
    try:
        return (settled or _proceed(state, observed, policy, bool(ends))) + ends
    except IncompleteError:
        if not ends:
            raise
        return ends


def _proceed(state: RunState, observed: Observed, policy: Policy, ending: bool) -> list[Action]:
    """Return what is begun when nothing is left to settle."""
    wanted = under_way(state, policy)
    if wanted is None:
        done = finished(state, policy, observed.now)
        return [] if done else [begin(state, policy, observed.now)]
    evaluation, candidates = wanted
    hopeless = _hopeless(state, evaluation, candidates, policy)
    if hopeless:
        return list(hopeless)
    _check_losses(state, evaluation, candidates, policy)
    missing = _missing(state, evaluation, candidates)
    if missing:
        return _resubmit(state, evaluation, missing, policy)
    if not state.reopened and all(state.settled(evaluation, c) for c in candidates):
        concluded = conclude(state, evaluation, policy)
        # Where a job is being ended, the next look shows that it has gone.
        return [] if ending and Complete() in concluded else concluded
    return []


def bad_nodes(state: RunState, faults: int, mixed: bool = False) -> list[str]:
    """Return the nodes on which the last `faults` or more candidates failed, one after another.

    Failures of a candidate that was given up are its own, and say nothing of a node; neither does
    another GPU where the site allows mixed ones.
    """
    return sorted(
        node
        for node, attempts in state.outcomes.items()
        if len(_last_faults(state, attempts, mixed)) >= faults
    )


def _last_faults(
    state: RunState, attempts: Sequence[AttemptState], mixed: bool
) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for attempt in reversed(attempts):
        if attempt.outcome in ("accepted", "quarantined"):
            break
        key = (attempt.evaluation, attempt.candidate)
        if _is_the_nodes(attempt, mixed) and key not in state.penalised:
            found.add(key)
    return found


def _is_the_nodes(attempt: AttemptState, mixed: bool) -> bool:
    """Whether a failure speaks against its node; the user may have mended an installation."""
    mended = mixed if attempt.kind == "device" else attempt.kind == "version" and attempt.forgiven
    return attempt.kind not in _NOT_THE_NODES and not mended


def _settle(state: RunState, observed: Observed, policy: Policy) -> list[Action]:
    """Settle batches without a job, and attempts with a receipt or without hope of one."""
    actions: list[Action] = [Adopt(batch, job) for batch, job in observed.found.items()]
    first = False
    for attempt in state.live_attempts():
        action = outcome(state, attempt, observed)
        if isinstance(action, Accept):
            if first:
                continue
            # Others are compared with a run's first table once that was found whole and counts.
            first = not (state.device and state.engine)
            action = _alike(action, state, policy)
        if action is not None:
            actions.append(action)
    actions += [Abandon(batch) for batch in observed.unsubmitted]
    actions += [
        Close(batch)
        for batch, jobs in observed.lingering.items()
        if not jobs and not state.batches[batch].abandoned
    ]
    return actions


def _alike(action: Accept, state: RunState, policy: Policy) -> Action:
    """Refuse a table that was made otherwise than the run's first: that is no candidate's fault."""
    receipt = action.receipt
    device = "" if policy.allow_mixed_gpus else state.device
    found = otherwise(device, state.engine, receipt.device, receipt.engine)
    if found is None:
        return action
    kind, words = found
    return Fail(action.attempt, kind, f"made on {words}", False, receipt.host, receipt.lasted)


def _hopeless(
    state: RunState, evaluation: str, candidates: Sequence[str], policy: Policy
) -> list[Penalise]:
    found = []
    for candidate in candidates:
        if state.settled(evaluation, candidate):
            continue
        tries = state.attempts.get((evaluation, candidate), [])
        if any(attempt.outcome == "live" for attempt in tries):
            continue
        reason = _given_up(tries, policy)
        if reason:
            if evaluation != "noise":  # there nobody is compared with it
                _refuse_if_parent(candidate, reason, policy)
            found.append(Penalise(evaluation, candidate, reason))
    return found


def _given_up(tries: Sequence[AttemptState], policy: Policy) -> str:
    """Return why a candidate gets no other attempt; empty if it gets one."""
    counted = [attempt for attempt in tries if attempt.counted]
    same = Counter(attempt.kind for attempt in counted)
    if counted and (max(same.values()) >= policy.attempts or len(counted) >= 2 * policy.attempts):
        return f"{counted[-1].kind}: {counted[-1].message}"
    free = (*_INTERRUPTIONS, "timeout")
    vain = [a for a in tries if a.outcome == "failed" and (a.counted or a.kind not in free)]
    return "too many attempts came to nothing" if len(vain) >= MOST_ATTEMPTS else ""


def _resubmit(
    state: RunState,
    evaluation: str,
    missing: Sequence[tuple[str, int, int]],
    policy: Policy,
) -> list[Action]:
    """Submit what is missing, except what somebody cancelled: that is asked for."""
    withheld = {m[0] for m in missing if _cancellations(state, evaluation, m[0], policy)}
    wanted = [m for m in missing if m[0] not in withheld]
    if wanted:
        _check_starts(state, evaluation, wanted)
        return [Submit(evaluation, tuple(wanted), _avoid(state, evaluation, wanted, policy))]
    if any(True for _ in state.live_attempts()):
        return []
    raise IncompleteError(
        f"somebody cancelled the tasks of {len(withheld)} candidates, and nothing else is to do",
        hint="send them again with --resubmit-cancelled, or always with "
        "--set site.resubmit_cancelled=N",
    )


def _check_starts(state: RunState, evaluation: str, wanted: Sequence[tuple[str, int, int]]) -> None:
    """Pause where tasks end before they begin: then the site is wrong, and no candidate is."""
    for candidate, _, _ in wanted:
        tries = state.attempts.get((evaluation, candidate), [])
        ended = [a for a in reversed(tries) if a.outcome != "abandoned"]
        _check_progress(ended, candidate)
        other = [a for a in ended if a.kind in _MADE_OTHERWISE and not a.forgiven]
        if len(other) >= MOST_STARTS:
            what, hint = _MADE_OTHERWISE[other[0].kind]
            raise IncompleteError(
                f"tasks run on {what}: {other[0].message}, node {other[0].node}", hint=hint
            )
        vain = list(takewhile(lambda a: a.kind == "not begun" and not a.forgiven, ended))
        if len(vain) >= MOST_STARTS:
            raise IncompleteError(
                f"tasks end before they begin: {vain[0].message}, task {vain[0].task}",
                hint=f"see logs/{vain[0].batch}*, or `l2s doctor --probe`; then the same command",
            )


def _check_progress(ended: Sequence[AttemptState], candidate: str) -> None:
    """Pause where a candidate is interrupted again and again, and comes no further."""
    idle = takewhile(
        lambda a: a.kind in _NO_FAULT and not a.forgiven and a.chunks == ended[0].chunks, ended
    )
    times = len(list(idle))
    if times >= MOST_ATTEMPTS:
        raise IncompleteError(
            f"{candidate} was interrupted {times} times in a row and came no further, the last "
            f"time: {ended[0].message}",
            hint="try smaller chunks (protocol.chunk_items) in a new run, or steadier nodes",
        )


def _cancellations(state: RunState, evaluation: str, candidate: str, policy: Policy) -> bool:
    """Whether a candidate was cancelled more often than it is sent again unasked."""
    tries = state.attempts.get((evaluation, candidate), [])
    times = sum(a.kind == "cancelled" and not a.forgiven for a in tries)
    return times > policy.resubmit_cancelled


def _avoid(
    state: RunState, evaluation: str, wanted: Sequence[tuple[str, int, int]], policy: Policy
) -> tuple[str, ...]:
    """Return the nodes that fail all the time, and then those on which these candidates failed.

    A node with another GPU or engine than the run's is none for any candidate.
    """
    mixed = policy.allow_mixed_gpus
    bad = bad_nodes(state, policy.node_faults, mixed)
    failed = [a for a in state.failures if a.kind in _MADE_OTHERWISE]
    for candidate, _, _ in wanted:
        failed += state.attempts.get((evaluation, candidate), [])
    nodes = {a.node for a in failed if a.node and _is_the_nodes(a, mixed)}
    return (*bad, *sorted(nodes - set(bad)))


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
    # Who has failed before comes last: it may take its task's other candidates with it.
    return tuple(sorted(found, key=lambda m: _faults(state, evaluation, m[0])))


def _faults(state: RunState, evaluation: str, candidate: str) -> int:
    return sum(a.counted for a in state.attempts.get((evaluation, candidate), []))
