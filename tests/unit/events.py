"""Events of a journal, receipts and states made by hand: what several unit tests begin with.

Batch `b1` has one task per candidate, `b1-a` that of candidate a, unless a test says otherwise.
"""

from __future__ import annotations

from typing import Any

from l2s_hpc.cluster.jobs import JobState
from l2s_hpc.controller.decide import Policy
from l2s_hpc.controller.judge import Observed
from l2s_hpc.records import Failure, Receipt
from l2s_hpc.store.journal import Entry
from l2s_hpc.store.state import RunState

Event = dict[str, Any]

POLICY = Policy(
    generations=2,
    attempts=2,
    failures=0.5,
    references={"parent.slow": "slow", "parent.fast": "fast"},
    parents={"slow": "slow", "fast": "fast"},
)
NOTHING = Observed({}, {})
ENTRY = Entry(1, "2026-01-01T00:00:00.000+00:00", "elsewhere", 1, "1", ())


def receipt(candidate: str = "a", attempt: int = 1, **changes: Any) -> Receipt:
    fields: dict[str, Any] = {
        "run": "toy-1",
        "evaluation": "search",
        "generation": 0,
        "candidate": candidate,
        "attempt": attempt,
        "protocol": "p",
        "host": "h",
        "device": "cpu",
        "versions": {},
        "seconds": {},
        "started": "",
        "ended": "",
    }
    return Receipt.model_validate(fields | changes)


def failure(kind: str) -> Failure:
    return Failure.model_validate({"kind": kind, "message": "why"})


def interrupted(kind: str = "interrupted", candidate: str = "a", chunks: int = 0) -> Receipt:
    """The receipt of an attempt that was told to end."""
    return receipt(candidate, failure=failure(kind), chunks=chunks)


def state_of(*events: Event) -> RunState:
    """The state after some events, each in an entry of its own."""
    state = RunState()
    for number, event in enumerate(events, 1):
        state.apply(Entry(number, ENTRY.time, ENTRY.host, ENTRY.pid, ENTRY.process, (event,)))
    return state


def job(state: str, reason: str = "", node: str = "", task: str = "b1-a") -> dict[str, JobState]:
    return {task: JobState(state, reason, node)}  # type: ignore[arg-type]


def asked(generation: int, *candidates: str) -> Event:
    genomes = [[float(ord(c[0]))] for c in candidates]
    return {
        "event": "asked",
        "generation": generation,
        "genomes": genomes,
        "candidates": list(candidates),
    }


def told(generation: int, count: int) -> Event:
    return {
        "event": "told",
        "generation": generation,
        "objectives": [[0.0]] * count,
        "violations": [[]] * count,
    }


def intent(
    *candidates: str, evaluation: str = "search", attempt: int = 1, batch: str = "b1"
) -> Event:
    """A submission with a task for each candidate."""
    tasks = [
        {"key": f"{batch}-{c}", "candidates": [[evaluation, 0, c, attempt]]} for c in candidates
    ]
    return {"event": "intent", "batch": batch, "tasks": tasks}


def shared(*candidates: str, batch: str = "b1") -> Event:
    """A submission with one task for all candidates."""
    task = {"key": f"{batch}-0", "candidates": [["search", 0, c, 1] for c in candidates]}
    return {"event": "intent", "batch": batch, "tasks": [task]}


def submitted(batch: str = "b1") -> Event:
    return {"event": "submitted", "batch": batch, "job": "7"}


def abandoned(batch: str = "b1") -> Event:
    return {"event": "abandoned", "batch": batch, "reason": "r"}


def closed(batch: str = "b1") -> Event:
    return {"event": "closed", "batch": batch}


def started(**changes: Any) -> Event:
    return {"event": "started", "command": "l2s run", "site": {}, "operational": {}, **changes}


def accepted(candidate: str, evaluation: str = "search", attempt: int = 1, **changes: Any) -> Event:
    return {
        "event": "accepted",
        "evaluation": evaluation,
        "generation": 0,
        "candidate": candidate,
        "attempt": attempt,
        "content_sha256": "s",
        "rows": 1,
        **changes,
    }


def failed(
    candidate: str, attempt: int = 1, counted: bool = True, kind: str = "merge", **changes: Any
) -> Event:
    return {
        "event": "failed",
        "evaluation": "search",
        "candidate": candidate,
        "attempt": attempt,
        "kind": kind,
        "message": f"try {attempt}",
        "counted": counted,
        **changes,
    }


def penalised(candidate: str) -> Event:
    return {"event": "penalised", "evaluation": "search", "candidate": candidate, "reason": "r"}


def evaluated(evaluation: str, *candidates: str) -> list[Event]:
    """Candidates that were submitted and accepted in one batch; it is not closed yet."""
    batch = f"of-{evaluation}"
    results = [accepted(c, evaluation) for c in candidates]
    return [intent(*candidates, evaluation=evaluation, batch=batch), submitted(batch), *results]


def again(candidate: str, attempt: int, **failing: Any) -> list[Event]:
    """Another attempt of a candidate, in a batch of its own, that failed."""
    batch = f"{candidate}{attempt}"
    return [
        intent(candidate, attempt=attempt, batch=batch),
        submitted(batch),
        failed(candidate, attempt, **failing),
    ]


def tries(candidate: str, *outcomes: bool, kind: str = "merge") -> list[Event]:
    """Failed attempts of a candidate, counted or not; the first one is in RUNNING."""
    events = [failed(candidate, 1, outcomes[0], kind)]
    for number, counted in enumerate(outcomes[1:], 2):
        events += again(candidate, number, counted=counted, kind=kind)
    return events


RUNNING = [asked(0, "a", "b"), intent("slow", "fast", "a", "b"), submitted()]
DONE = [accepted(c) for c in ("slow", "fast", "a", "b")]
