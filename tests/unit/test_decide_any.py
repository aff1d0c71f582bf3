"""`decide` alone, with made-up observations: whatever is seen, it keeps to its promises.

Each example is a search in which every step sees something at random, also what no cluster would
show; the decisions are then written down as the controller does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.cluster.jobs import NO_ROOM_JOB, STUCK_JOB, UNKNOWN_JOB, JobState
from l2s_hpc.controller.actions import (
    Abandon,
    Accept,
    Action,
    Adopt,
    Ask,
    Close,
    Complete,
    End,
    Fail,
    Fix,
    Penalise,
    Stage,
    Submit,
    Tell,
)
from l2s_hpc.controller.decide import Policy, decide, finished
from l2s_hpc.controller.judge import Observed
from l2s_hpc.errors import DamageError, IncompleteError
from l2s_hpc.records import Failure, Receipt
from l2s_hpc.store.journal import Entry, Event
from l2s_hpc.store.state import AttemptKey, AttemptState, RunState

PARENTS = {"slow": "slow", "fast": "fast"}
REASONS = (
    "",
    "FAILED",
    "COMPLETED",
    "OUT_OF_MEMORY",
    "TIMEOUT",
    "PREEMPTED",
    "CANCELLED",
    "NODE_FAIL",
    NO_ROOM_JOB,
    STUCK_JOB,
    UNKNOWN_JOB,
)
NOBODYS_FAULT = ("PREEMPTED", "CANCELLED", "NODE_FAIL", NO_ROOM_JOB, STUCK_JOB, UNKNOWN_JOB)
FAILURES = get_args(Failure.model_fields["kind"].annotation)
OVER = ("ended", "orphaned", "stuck")


def policy(source: random.Random) -> Policy:
    return Policy(
        generations=2,
        attempts=source.choice([1, 2, 50]),
        failures=source.choice([0.5, 1.0]),
        references={f"parent.{name}": c for name, c in PARENTS.items()} | {"average": "mean"},
        parents=PARENTS,
        resubmit_cancelled=source.choice([0, 50]),
        twins=source.choice([0, 1, 3]),
    )


def receipt(attempt: AttemptState, failure: Failure | None, chunks: int) -> Receipt:
    return Receipt(
        run="r",
        evaluation=attempt.evaluation,
        generation=attempt.generation,
        candidate=attempt.candidate,
        attempt=attempt.attempt,
        protocol="p",
        host="n1",
        device="",
        versions={},
        seconds={},
        started="",
        ended="",
        chunks=chunks,
        failure=failure,
    )


def look(source: random.Random, state: RunState, trouble: float) -> Observed:
    """Something to be seen; with less trouble, more often that all is well."""
    receipts: dict[AttemptKey, Receipt | DamageError] = {}
    jobs: dict[str, JobState] = {}
    started: dict[AttemptKey, int] = {}
    for attempt in state.live_attempts():
        if state.batches[attempt.batch].job is None:
            continue
        if source.random() > trouble:
            receipts[attempt.key] = receipt(attempt, None, 2)
            continue
        seen = source.choice(["nothing", "failure", "damage"])
        if seen == "failure":
            kind = source.choice(FAILURES)
            why = Failure(kind=kind, message="why")
            receipts[attempt.key] = receipt(attempt, why, source.randrange(3))
        elif seen == "damage":
            receipts[attempt.key] = DamageError("torn")
        known = source.choice(["", "pending", "running", "unknown", *OVER])
        if known:
            reason = source.choice(REASONS) if known in OVER else ""
            jobs[attempt.task] = JobState(known, reason, "n1", "7_0")  # type: ignore[arg-type]
        if source.random() < 0.5:
            started[attempt.key] = 0
    unwritten = [name for name, b in state.open_batches.items() if b.job is None]
    unwritten = [name for name in unwritten if not state.batches[name].abandoned]
    lost = [name for name in unwritten if source.random() < trouble]
    idle = [name for name, batch in state.open_batches.items() if not batch.live]
    return Observed(
        receipts=receipts,
        jobs=jobs,
        started=started,
        unsubmitted=lost,
        found={name: "7" for name in unwritten if name not in lost},
        lingering={name: source.choice([(), ("7_0",)]) for name in idle if source.random() < 0.7},
    )


def events_of(state: RunState, actions: Sequence[Action], number: int) -> list[Event]:
    """What the controller writes down for actions, with made-up results."""
    return [event for action in actions for event in _events(state, action, f"b-{number}")]


def _events(state: RunState, action: Action, batch: str) -> list[dict[str, Any]]:
    match action:
        case Adopt(name, job):
            return [{"event": "submitted", "batch": name, "job": job}]
        case Abandon(name):
            return [{"event": "abandoned", "batch": name, "reason": "r"}]
        case Close(name):
            return [{"event": "closed", "batch": name}]
        case Accept(a):
            found = {"generation": a.generation, "content_sha256": "s", "rows": 1, "node": "n1"}
            return [{"event": "accepted", **_names(a), **found}]
        case Fail(a, kind, message, counted, node, seconds, chunks):
            why = {"kind": kind, "message": message, "counted": counted, "node": node}
            return [{"event": "failed", **_names(a), **why, "seconds": seconds, "chunks": chunks}]
        case Penalise(evaluation, candidate, reason):
            names = {"evaluation": evaluation, "candidate": candidate, "reason": reason}
            return [{"event": "penalised", **names}]
        case Submit(evaluation, candidates):
            rows = [[evaluation, generation, c, number] for c, generation, number in candidates]
            pairs = [rows[start : start + 2] for start in range(0, len(rows), 2)]
            tasks = [{"key": f"{batch}-{n}", "candidates": pair} for n, pair in enumerate(pairs)]
            return [{"event": "intent", "batch": batch, "tasks": tasks}]
        case Ask(generation):
            names = ("abcd", "cdef")[generation]
            genomes = [[float(ord(name))] for name in names]
            asked = {"generation": generation, "genomes": genomes, "candidates": list(names)}
            return [{"event": "asked", **asked}]
        case Tell(generation):
            rows = [[0.0]] * len(state.generations[generation].candidates)
            return [
                {"event": "told", "generation": generation, "objectives": rows, "violations": rows}
            ]
        case Stage(evaluation):
            chosen = [c for c in ("a", "slow", "fast") if ("search", c) not in state.penalised]
            return [{"event": "stage", "evaluation": evaluation, "candidates": chosen}]
        case Fix():
            return [{"event": "fixed", "front": ["a"], "picks": {"knee": "a"}}]
        case Complete():
            return [{"event": "completed"}]
    return []


def _names(attempt: AttemptState) -> dict[str, Any]:
    return dict(zip(("evaluation", "candidate", "attempt"), attempt.key, strict=True))


def check(state: RunState, observed: Observed, actions: Sequence[Action]) -> None:
    """What must be true of any decision."""
    for action in actions:
        match action:
            case Accept(attempt, found):
                assert attempt.outcome == "live" and found.failure is None
                assert not state.settled(attempt.evaluation, attempt.candidate)
            case Fail(attempt):
                check_failure(observed, action)
            case Submit(evaluation, candidates):
                others = [a for a in actions if not isinstance(a, End)]
                assert others == [action], "a submission stands alone"
                for candidate, _, number in candidates:
                    tries = state.attempts.get((evaluation, candidate), [])
                    assert all(a.outcome != "live" for a in tries), "it is under way"
                    assert not state.settled(evaluation, candidate) and number == len(tries) + 1
            case Penalise(evaluation, candidate):
                assert not state.settled(evaluation, candidate)
                assert candidate not in PARENTS.values() or evaluation == "noise"
                tries = state.attempts[evaluation, candidate]
                assert all(a.outcome != "live" for a in tries)
            case Abandon(batch):
                assert batch in observed.unsubmitted
            case Close(batch) | End(batch):
                assert batch in observed.lingering and not state.batches[batch].live
            case Complete():
                assert all(b.abandoned for b in state.open_batches.values())
            case Tell(generation):
                wanted = state.generations[generation].candidates
                assert all(state.settled("search", candidate) for candidate in wanted)


def check_failure(observed: Observed, action: Fail) -> None:
    """Only what is known to be over has failed, and only what began can be to blame."""
    attempt = action.attempt
    found, job = observed.receipts.get(attempt.key), observed.jobs.get(attempt.task)
    assert attempt.outcome == "live"
    if isinstance(found, DamageError):
        assert not action.counted
        return
    if found is not None and found.failure is not None and not found.failure.unfinished:
        assert action.counted == (action.kind not in ("device", "version"))
        assert action.kind == found.failure.kind
        return
    assert job is not None and job.state in OVER, "pending, running and unknown are not failed"
    if found is None and (job.reason in NOBODYS_FAULT or attempt.key not in observed.started):
        assert not action.counted


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from([0.2, 0.6, 0.95]))
def test_whatever_is_seen_decide_keeps_its_promises(seed: int, trouble: float) -> None:
    source = random.Random(seed)
    state, rules = RunState(), policy(source)
    accepted: set[tuple[str, str]] = set()
    for number in range(1, 60):
        observed = look(source, state, trouble if number < 40 else 0.0)
        before = repr(state)
        try:
            actions = decide(state, observed, rules)
        except IncompleteError as error:
            assert error.hint, "a pause says how to go on"
            assert repr(state) == before
            return
        assert repr(state) == before and decide(state, observed, rules) == actions
        check(state, observed, actions)
        events = events_of(state, actions, number)
        for event in (event for event in events if event["event"] == "accepted"):
            key = (event["evaluation"], event["candidate"])
            assert key not in accepted, "accepted twice"
            accepted.add(key)
        if events:
            state.apply(Entry(number, "2026-01-01T00:00:00+00:00", "h", 1, "1", tuple(events)))
        if finished(state, rules):
            assert decide(state, Observed({}, {}), rules) == []
            break


@pytest.mark.parametrize("state", ["pending", "running", "unknown"])
@pytest.mark.parametrize("failure", [None, "interrupted", "timeout"])
def test_what_is_not_over_is_neither_done_nor_failed(state: str, failure: str | None) -> None:
    """Also if it was told to end: Slurm may start it again."""
    run, rules = RunState(), policy(random.Random(0))
    for number, action in enumerate(
        (Ask(0), Submit("search", (("a", 0, 1),)), Adopt("b-2", "7")), 1
    ):
        events = tuple(events_of(run, [action], number))
        run.apply(Entry(number, "2026-01-01T00:00:00+00:00", "h", 1, "1", events))
    (attempt,) = run.live_attempts()
    why = Failure(kind=failure, message="why") if failure else None  # type: ignore[arg-type]
    seen = {attempt.key: receipt(attempt, why, 0)} if why else {}
    observed = Observed(seen, {attempt.task: JobState(state, "", "n1", "7_0")})  # type: ignore
    assert not any(isinstance(a, Accept | Fail) for a in decide(run, observed, rules))
