"""What the controller decides from what it sees, and what it sees; no cluster, no clock."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.cluster.jobs import UNKNOWN_JOB, JobState
from l2s_hpc.cluster.local import LocalExecutor
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.decide import (
    MOST_ATTEMPTS,
    Abandon,
    Accept,
    Action,
    Adopt,
    Ask,
    Complete,
    Fail,
    Fix,
    Observed,
    Penalise,
    Policy,
    Stage,
    Submit,
    Tell,
    decide,
    finished,
)
from l2s_hpc.controller.observe import Observer
from l2s_hpc.errors import DamageError, IncompleteError
from l2s_hpc.records import Failure, Receipt
from l2s_hpc.store.files import process_start, write_json
from l2s_hpc.store.journal import Entry
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import AttemptState, BatchState, RunState

POLICY = Policy(
    generations=2,
    attempts=2,
    failures=0.5,
    references={"parent.slow": "slow", "parent.fast": "fast"},
    parents={"slow": "slow", "fast": "fast"},
)
NOTHING = Observed({}, {})
ENTRY = Entry(1, "2026-01-01T00:00:00.000+00:00", "elsewhere", 1, "1", ())
Event = dict[str, Any]


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


def state_of(*events: Event) -> RunState:
    """The state after some events, each in an entry of its own."""
    state = RunState()
    for number, event in enumerate(events, 1):
        state.apply(Entry(number, ENTRY.time, ENTRY.host, ENTRY.pid, ENTRY.process, (event,)))
    return state


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
    tasks = [
        {"key": f"{batch}-{c}", "candidates": [[evaluation, 0, c, attempt]]} for c in candidates
    ]
    return {"event": "intent", "batch": batch, "tasks": tasks}


def submitted(batch: str = "b1") -> Event:
    return {"event": "submitted", "batch": batch, "job": "7"}


def accepted(candidate: str, evaluation: str = "search", attempt: int = 1) -> Event:
    return {
        "event": "accepted",
        "evaluation": evaluation,
        "generation": 0,
        "candidate": candidate,
        "attempt": attempt,
        "content_sha256": "s",
        "rows": 1,
    }


def failed(candidate: str, attempt: int = 1, counted: bool = True, kind: str = "merge") -> Event:
    return {
        "event": "failed",
        "evaluation": "search",
        "candidate": candidate,
        "attempt": attempt,
        "kind": kind,
        "message": f"try {attempt}",
        "counted": counted,
    }


def penalised(candidate: str) -> Event:
    return {"event": "penalised", "evaluation": "search", "candidate": candidate, "reason": "r"}


def evaluated(evaluation: str, *candidates: str) -> list[Event]:
    batch = f"of-{evaluation}"
    results = [accepted(c, evaluation) for c in candidates]
    return [intent(*candidates, evaluation=evaluation, batch=batch), submitted(batch), *results]


RUNNING = [asked(0, "a", "b"), intent("slow", "fast", "a", "b"), submitted()]
DONE = [accepted(c) for c in ("slow", "fast", "a", "b")]


def job(state: str, reason: str = "") -> dict[str, JobState]:
    return {"b1-a": JobState(state, reason)}  # type: ignore[arg-type]


# One live attempt


@pytest.mark.parametrize(
    ("found", "jobs", "expected"),
    [
        (None, {}, None),
        (None, job("pending"), None),
        (None, job("running"), None),
        (None, job("unknown"), None),
        (None, job("ended"), ("lost", "its job ended without a receipt", True)),
        (None, job("ended", "OUT_OF_MEMORY"), ("lost", "OUT_OF_MEMORY", True)),
        (None, job("ended", "NODE_FAIL"), ("lost", "NODE_FAIL", False)),
        (None, job("ended", "PREEMPTED"), ("lost", "PREEMPTED", False)),
        (None, job("orphaned", "its controller has died"),
         ("orphaned", "its controller has died", False)),
        (receipt(), {}, "accept"),
        (receipt(), job("running"), "accept"),
        (receipt(), job("ended", "FAILED"), "accept"),
        (receipt(), job("unknown"), "accept"),
        (receipt(), job("orphaned"), "accept"),
        (receipt(failure=failure("merge")), job("running"), ("merge", "why", True)),
        (receipt(failure=failure("engine")), job("ended"), ("engine", "why", True)),
        (receipt(failure=failure("interrupted")), job("ended"), ("interrupted", "why", False)),
        (DamageError("torn"), job("running"), ("damaged", "torn", False)),
    ],
)  # fmt: skip
def test_a_receipt_comes_first_then_the_job(
    found: Receipt | DamageError | None, jobs: dict[str, JobState], expected: Any
) -> None:
    state = state_of(*RUNNING)
    (attempt,) = state.attempts["search", "a"]
    receipts = {} if found is None else {("search", "a", 1): found}
    actions = decide(state, Observed(receipts, jobs), POLICY)
    if expected is None:
        assert actions == []
    elif expected == "accept":
        assert isinstance(found, Receipt) and actions == [Accept(attempt, found)]
    else:
        assert actions == [Fail(attempt, *expected)]


def test_a_batch_that_was_found_is_adopted_and_a_lost_one_abandoned() -> None:
    state = state_of(*RUNNING[:2])
    assert decide(state, Observed({}, {}, (), {"b1": "77"}), POLICY) == [Adopt("b1", "77")]
    assert decide(state, Observed({}, {}, ("b1",)), POLICY) == [Abandon("b1")]
    assert decide(state, Observed({}, job("ended"), ("b1",)), POLICY) == [Abandon("b1")]


def test_receipts_of_a_batch_that_nobody_remembers_count() -> None:
    state = state_of(*RUNNING[:2])
    (attempt,) = state.attempts["search", "a"]
    found = receipt()
    observed = Observed({("search", "a", 1): found}, job("ended"), ("b1",))
    assert decide(state, observed, POLICY) == [Accept(attempt, found), Abandon("b1")]


def test_after_an_abandoned_batch_nothing_was_lost_and_all_is_submitted_again() -> None:
    state = state_of(*RUNNING[:2], {"event": "abandoned", "batch": "b1", "reason": "r"})
    everyone = tuple((candidate, 0, 2) for candidate in ("slow", "fast", "a", "b"))
    assert decide(state, NOTHING, POLICY) == [Submit("search", everyone)]


# The course of a search


SELECTED: Event = {"event": "stage", "evaluation": "selection", "candidates": ["a", "slow", "fast"]}
FIXED: Event = {"event": "fixed", "front": ["a"], "picks": {}}
REPORTED: Event = {"event": "stage", "evaluation": "report", "candidates": ["a", "slow"]}
SECOND = [asked(1, "a", "c"), intent("c", batch="b2"), submitted("b2"), accepted("c")]
SEARCHED = [*RUNNING, *DONE, told(0, 2), *SECOND, told(1, 2)]
COURSE: list[tuple[list[Event], list[Action]]] = [
    ([], [Ask(0)]),
    ([asked(0, "a", "b")],
     [Submit("search", (("slow", 0, 1), ("fast", 0, 1), ("a", 0, 1), ("b", 0, 1)))]),
    (RUNNING, []),
    ([*RUNNING, *DONE[:3]], []),
    ([*RUNNING, *DONE], [Tell(0)]),
    ([*RUNNING, *DONE, told(0, 2)], [Ask(1)]),
    ([*RUNNING, *DONE, told(0, 2), asked(1, "a", "b")], [Tell(1)]),
    ([*RUNNING, *DONE, told(0, 2), asked(1, "a", "c")], [Submit("search", (("c", 1, 1),))]),
    ([*RUNNING, *DONE, told(0, 2), asked(1)], [Tell(1)]),
    (SEARCHED, [Stage("selection")]),
    ([*SEARCHED, SELECTED],
     [Submit("selection", (("a", 0, 1), ("slow", 0, 1), ("fast", 0, 1)))]),
    ([*SEARCHED, SELECTED, *evaluated("selection", "a", "slow", "fast")], [Fix()]),
    ([*SEARCHED, SELECTED, FIXED], [Stage("report")]),
    ([*SEARCHED, SELECTED, FIXED, REPORTED],
     [Submit("report", (("a", 0, 1), ("slow", 0, 1)))]),
    ([*SEARCHED, SELECTED, FIXED, REPORTED, *evaluated("report", "a", "slow")], [Complete()]),
    ([*SEARCHED, SELECTED, FIXED, REPORTED, *evaluated("report", "a", "slow"),
      {"event": "completed"}], []),
]  # fmt: skip


@pytest.mark.parametrize(("events", "actions"), COURSE, ids=range(len(COURSE)))
def test_search_then_selection_then_report_then_complete(
    events: list[Event], actions: list[Action]
) -> None:
    assert decide(state_of(*events), NOTHING, POLICY) == actions


def test_an_empty_front_is_fixed_too() -> None:
    events = [*SEARCHED, SELECTED, FIXED | {"front": []}]
    assert decide(state_of(*events), NOTHING, POLICY) == [Stage("report")]


def test_after_an_empty_generation_the_search_does_not_ask_again() -> None:
    events = [*RUNNING, *DONE, told(0, 2), asked(1), told(1, 0)]
    longer = Policy(9, 2, 0.5, POLICY.references, POLICY.parents)
    assert decide(state_of(*events), NOTHING, longer) == [Stage("selection")]


def test_a_finished_search_may_grow() -> None:
    events = COURSE[-1][0]
    longer = Policy(3, 2, 0.5, POLICY.references, POLICY.parents)
    assert finished(state_of(*events), POLICY) and not finished(state_of(*events), longer)
    assert decide(state_of(*events), NOTHING, longer) == [Ask(2)]
    grown = state_of(*events, asked(2, "d"))
    assert decide(grown, NOTHING, longer) == [Submit("search", (("d", 2, 1),))]
    again = state_of(*events, asked(2, "a"), told(2, 1))
    assert decide(again, NOTHING, longer) == [Stage("selection")]


def test_a_fixed_search_that_grows_does_so_before_the_report_split_is_looked_at() -> None:
    longer = Policy(3, 2, 0.5, POLICY.references, POLICY.parents)
    state = state_of(*SEARCHED, SELECTED, FIXED)
    assert decide(state, NOTHING, longer) == [Ask(2)]


def test_a_single_evaluation_in_place_of_a_search() -> None:
    only = Policy(2, 2, 0.5, POLICY.references, POLICY.parents, only=("search", ("slow",)))
    assert decide(state_of(), NOTHING, only) == [Submit("search", (("slow", 0, 1),))]
    done = [intent("slow"), submitted(), accepted("slow")]
    assert decide(state_of(*done), NOTHING, only) == [Complete()]
    assert decide(state_of(*done, {"event": "completed"}), NOTHING, only) == []
    assert decide(state_of(*done, {"event": "completed"}), NOTHING, POLICY) == [Ask(0)]


def test_a_damaged_table_is_evaluated_again_before_anything_else() -> None:
    damage = {"event": "quarantined", "evaluation": "selection", "candidate": "a", "reason": "r"}
    selected = [*SEARCHED, SELECTED, *evaluated("selection", "a", "slow", "fast"), FIXED]
    assert decide(state_of(*selected, damage), NOTHING, POLICY) == [
        Submit("selection", (("a", 0, 2),))
    ]
    again = intent("a", evaluation="selection", attempt=2, batch="b9")
    mended = [damage, again, submitted("b9"), accepted("a", "selection", 2)]
    assert decide(state_of(*selected, *mended), NOTHING, POLICY) == [Stage("report")]


# Failures


def tries(candidate: str, *outcomes: bool) -> list[Event]:
    """Failed attempts of a candidate, counted or not; the first one is in RUNNING."""
    events = [failed(candidate, 1, outcomes[0])]
    for number, counted in enumerate(outcomes[1:], 2):
        events += [
            intent(candidate, attempt=number, batch=f"{candidate}{number}"),
            submitted(f"{candidate}{number}"),
            failed(candidate, number, counted),
        ]
    return events


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([True], Submit("search", (("a", 0, 2),))),
        ([False, False, False], Submit("search", (("a", 0, 4),))),
        ([False, True, False], Submit("search", (("a", 0, 4),))),
        ([True, True], Penalise("search", "a", "merge: try 2")),
        ([True, False, True], Penalise("search", "a", "merge: try 3")),
        ([False] * MOST_ATTEMPTS, Penalise("search", "a", "too many attempts")),
    ],
)
def test_counted_failures_lead_to_a_penalty(outcomes: list[bool], expected: Action) -> None:
    events = [*RUNNING, DONE[0], DONE[1], DONE[3], *tries("a", *outcomes)]
    assert decide(state_of(*events), NOTHING, POLICY) == [expected]


def test_what_failed_is_tried_again_while_others_run() -> None:
    state = state_of(*RUNNING, failed("a"))
    assert decide(state, NOTHING, POLICY) == [Submit("search", (("a", 0, 2),))]


def test_a_penalised_candidate_does_not_hold_the_generation_up() -> None:
    state = state_of(*RUNNING, *DONE[:3], *tries("b", True, True), penalised("b"))
    assert decide(state, NOTHING, POLICY) == [Tell(0)]


def test_a_parents_failure_stops_the_search() -> None:
    with pytest.raises(IncompleteError) as error:
        decide(state_of(*RUNNING, *tries("fast", True, True)), NOTHING, POLICY)
    assert str(error.value) == (
        "the parent 'fast' cannot be evaluated, and all is compared with it: merge: try 2\n"
        "  Hint: mend the cause, raise site.attempts by one, and give the same command again"
    )
    more = Policy(2, 3, 0.5, POLICY.references, POLICY.parents)
    state = state_of(*RUNNING, *DONE[2:], DONE[0], *tries("fast", True, True))
    assert decide(state, NOTHING, more) == [Submit("search", (("fast", 0, 3),))]


def test_too_many_failures_pause_the_search() -> None:
    lost = [penalised(candidate) for candidate in "abc"]
    events = [asked(0, "a", "b", "c"), intent("slow", "fast"), submitted(), *DONE[:2], *lost]
    with pytest.raises(IncompleteError) as error:
        decide(state_of(*events), NOTHING, POLICY)
    assert str(error.value) == (
        "3 of 5 candidates failed in generation 0, more than search.failures = 0.5; "
        "the last reason: r\n"
        "  Hint: see the receipts under attempts/; raise --set search.failures to go on"
    )
    patient = Policy(2, 2, 0.6, POLICY.references, POLICY.parents)
    assert decide(state_of(*events), NOTHING, patient) == [Tell(0)]


# Whatever happens


KEYS = [(e, c) for e in ("search", "selection") for c in ("slow", "a", "b")]


@st.composite
def states(draw: st.DrawFn) -> RunState:
    """States of all kinds, also such as no journal leads to."""
    state = RunState(
        stopped=draw(st.booleans()),
        completed=draw(st.booleans()),
        front=draw(st.sampled_from([None, (), ("a",)])),
    )
    for generation in range(draw(st.integers(0, 2))):
        candidates = draw(st.lists(st.sampled_from(["slow", "a", "b"]), max_size=3))
        events = [asked(generation, *candidates), told(generation, len(candidates))]
        for event in events[: draw(st.integers(1, 2))]:
            completed, front = state.completed, state.front
            state.apply(Entry(1, ENTRY.time, "h", 1, "1", (event,)))
            state.completed, state.front = completed, front
    for name in draw(st.sets(st.sampled_from(["selection", "report"]))):
        state.stages[name] = tuple(draw(st.lists(st.sampled_from("ab"), max_size=2)))
    for evaluation, candidate in KEYS:
        outcomes = st.sampled_from(["live", "failed", "abandoned", "accepted"])
        for number, outcome in enumerate(draw(st.lists(outcomes, max_size=3)), 1):
            attempt = AttemptState(evaluation, 0, candidate, number, "b1", f"{candidate}{number}")
            attempt.outcome, attempt.counted = outcome, draw(st.booleans())
            state.attempts.setdefault((evaluation, candidate), []).append(attempt)
    for key in draw(st.sets(st.sampled_from(KEYS), max_size=4)):
        state.penalised[key] = "r"
    for evaluation, candidate in draw(st.sets(st.sampled_from(KEYS), max_size=4)):
        result = accepted(candidate, evaluation)
        del result["event"]
        state.accepted[evaluation, candidate] = result  # type: ignore[assignment]
    state.reopened = draw(st.sets(st.sampled_from(KEYS), max_size=2)) - state.accepted.keys()
    return state


@st.composite
def observations(draw: st.DrawFn, state: RunState) -> Observed:
    receipts: dict[tuple[str, str, int], Receipt | DamageError] = {}
    jobs: dict[str, JobState] = {}
    for attempt in state.live_attempts():
        found = draw(st.sampled_from([None, None, "ok", "bad", "torn"]))
        key = (attempt.evaluation, attempt.candidate, attempt.attempt)
        if found == "torn":
            receipts[key] = DamageError("torn")
        elif found:
            why = failure("merge") if found == "bad" else None
            receipts[key] = receipt(attempt.candidate, attempt.attempt, failure=why)
        known = draw(st.sampled_from([None, "pending", "unknown", "ended", "orphaned"]))
        if known:
            jobs[attempt.task] = JobState(known)  # type: ignore[arg-type]
    return Observed(receipts, jobs, draw(st.sampled_from([(), ("b1",)])))


@settings(max_examples=100)
@given(st.data())
def test_nothing_is_submitted_twice_and_decisions_repeat(data: st.DataObject) -> None:
    state = data.draw(states())
    observed = data.draw(st.sampled_from([NOTHING]) | observations(state))
    before = deepcopy(state)
    try:
        actions = decide(state, observed, POLICY)
    except IncompleteError as error:
        with pytest.raises(IncompleteError) as again:
            decide(state, observed, POLICY)
        assert str(again.value) == str(error)
        return
    assert actions == decide(state, observed, POLICY) and state == before
    for action in actions:
        if isinstance(action, Submit):
            assert actions == [action], "a submission stands alone"
            for candidate, _, number in action.candidates:
                key = (action.evaluation, candidate)
                known = state.attempts.get(key, [])
                assert all(attempt.outcome != "live" for attempt in known)
                assert not state.settled(*key) and number == len(known) + 1
        if isinstance(action, Accept):
            assert action.attempt.outcome == "live" and action.receipt.failure is None


def events_of(state: RunState, actions: Sequence[Action], batch: str) -> list[Event]:
    """What the controller writes down for actions, with made-up objectives and a made-up front."""
    events: list[Event] = []
    for action in actions:
        match action:
            case Accept(attempt):
                events.append(accepted(attempt.candidate, attempt.evaluation, attempt.attempt))
            case Fail(attempt, kind, _, counted):
                event = failed(attempt.candidate, attempt.attempt, counted, kind)
                events.append(event | {"evaluation": attempt.evaluation})
            case Penalise(evaluation, candidate):
                events.append(penalised(candidate) | {"evaluation": evaluation})
            case Abandon(name):
                events.append({"event": "abandoned", "batch": name, "reason": "r"})
            case Adopt(name):
                events.append(submitted(name))
            case Submit(evaluation, candidates):
                tasks = [
                    {"key": f"{batch}-{c}", "candidates": [[evaluation, g, c, number]]}
                    for c, g, number in candidates
                ]
                events.append({"event": "intent", "batch": batch, "tasks": tasks})
            case Ask(generation):
                events.append(asked(generation, *("abc", "bde")[generation]))
            case Tell(generation):
                events.append(told(generation, len(state.generations[generation].candidates)))
            case Stage(evaluation):
                chosen = [c for c in ("a", "slow", "fast") if ("search", c) not in state.penalised]
                events.append({"event": "stage", "evaluation": evaluation, "candidates": chosen})
            case Fix():
                events.append(FIXED)
            case Complete():
                events.append({"event": "completed"})
    return events


@settings(max_examples=60)
@given(st.data())
def test_whatever_befalls_the_nodes_a_search_ends_and_each_table_counts_once(
    data: st.DataObject,
) -> None:
    """A controller that may die after every entry, and nodes that fail in every way for a while."""
    state, lucky_after = RunState(), data.draw(st.integers(0, 25), label="lucky after")
    for number in range(1, 120):
        bad = number <= lucky_after
        receipts: dict[tuple[str, str, int], Receipt | DamageError] = {}
        jobs: dict[str, JobState] = {}
        for attempt in state.live_attempts():
            key = (attempt.evaluation, attempt.candidate, attempt.attempt)
            fates = ["wait", "ok", "interrupted", "torn", "ended", "orphaned", "unknown"]
            fate = data.draw(st.sampled_from(fates)) if bad else "ok"
            if state.batches[attempt.batch].job is None:
                continue
            if fate == "torn":
                receipts[key] = DamageError("torn")
            elif fate == "ok":
                receipts[key] = receipt(attempt.candidate, attempt.attempt)
            elif fate == "interrupted":
                why = failure("interrupted")
                receipts[key] = receipt(attempt.candidate, attempt.attempt, failure=why)
            elif fate != "wait":
                jobs[attempt.task] = JobState(fate)  # type: ignore[arg-type]
        without_job = [name for name, batch in state.batches.items() if batch.job is None]
        lost = [n for n in without_job if data.draw(st.booleans())] if bad else []
        found = {name: "7" for name in without_job if name not in lost}
        patient = Policy(2, 50, 1.0, POLICY.references, POLICY.parents)
        actions = decide(state, Observed(receipts, jobs, lost, found), patient)
        events = events_of(state, actions, f"b{number}")
        for event in events:
            if event["event"] == "accepted":
                assert not state.settled(event["evaluation"], event["candidate"])
        if events:
            state.apply(Entry(number, ENTRY.time, "h", 1, "1", tuple(events)))
        if state.completed:
            break
    assert state.completed and state.looks == 1 and list(state.live_attempts()) == []
    assert {c for e, c in state.accepted if e == "search"} >= {"slow", "fast"}


# What is seen


class Cluster:
    """An executor that says what a test wants, and counts how often it was asked."""

    def __init__(self, states: Mapping[str, JobState], job: str | None = None) -> None:
        self.states, self.job, self.asked = states, job, 0
        self.on_watch: Any = lambda: None
        self.most_tasks = 10

    def submit(self, batch: str, tasks: Sequence[str]) -> str:
        raise NotImplementedError

    def find(self, batch: BatchState) -> str | None:
        return self.job

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        self.asked += 1
        self.on_watch()
        tasks = [task for batch in batches.values() for task in batch.tasks]
        return {task: self.states[task] for task in tasks if task in self.states}

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def leave(paths: RunPaths, value: Any, candidate: str = "a", attempt: int = 1) -> Path:
    path = paths.attempt("search", 0, candidate, attempt).receipt
    write_json(path, value.model_dump(mode="json") if isinstance(value, Receipt) else value)
    return path


def watched(*events: Event) -> RunState:
    """A state with one live attempt, of candidate a in batch b1."""
    return state_of(asked(0, "a"), intent("a"), *events)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_job_is_over_only_after_the_grace_period(tmp_path: Path, clock: list[float]) -> None:
    cluster = Cluster({"b1-a": JobState("ended", "FAILED", "n1")})
    observer, state = Observer(RunPaths(tmp_path), cluster, 60.0), watched(submitted())
    for clock[0], seen in ((1000.0, "unknown"), (1059.9, "unknown"), (1060.0, "ended")):
        (found,) = observer.look(state).jobs.values()
        assert found.state == seen and found.node == "n1"
    cluster.states = {"b1-a": JobState("running")}
    assert observer.look(state).jobs["b1-a"].state == "running"
    cluster.states = {"b1-a": JobState("ended")}
    assert observer.look(state).jobs["b1-a"].state == "unknown", "the period begins anew"


def test_without_grace_a_job_is_over_at_once(tmp_path: Path, clock: list[float]) -> None:
    observer = Observer(RunPaths(tmp_path), Cluster({"b1-a": JobState("ended")}), 0.0)
    assert observer.look(watched(submitted())).jobs["b1-a"].state == "ended"


def test_a_receipt_that_came_while_jobs_were_watched_is_seen(tmp_path: Path) -> None:
    """Else a job that ended between the two looks would be called lost."""
    paths, state = RunPaths(tmp_path), watched(submitted())
    cluster = Cluster({"b1-a": JobState("ended")})
    cluster.on_watch = lambda: leave(paths, receipt())
    observed = Observer(paths, cluster, 0.0).look(state)
    (action,) = decide(state, observed, POLICY)
    assert isinstance(action, Accept)


def test_jobs_are_not_asked_for_where_receipts_say_all(tmp_path: Path) -> None:
    paths, cluster = RunPaths(tmp_path), Cluster({})
    leave(paths, receipt())
    observed = Observer(paths, cluster, 0.0).look(watched(submitted()))
    assert observed.receipts == {("search", "a", 1): receipt()}
    assert cluster.asked == 0 and observed.jobs == {} and observed.unsubmitted == ()


@pytest.mark.parametrize(
    "changes",
    [{"candidate": "b"}, {"evaluation": "report"}, {"attempt": 2}, {"generation": 1}],
    ids=str,
)
def test_a_receipt_of_another_attempt_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    paths = RunPaths(tmp_path)
    path = leave(paths, receipt(**changes))
    observed = Observer(paths, Cluster({}), 0.0).look(watched(submitted()))
    (error,) = observed.receipts.values()
    assert isinstance(error, DamageError) and error.path == path
    assert "the receipt of another attempt" in error.message


@pytest.mark.parametrize("value", [{}, [], {"run": 1}, receipt().model_dump() | {"more": 1}])
def test_what_is_not_a_receipt_is_damage(tmp_path: Path, value: Any) -> None:
    paths = RunPaths(tmp_path)
    path = leave(paths, value)
    (error,) = Observer(paths, Cluster({}), 0.0).look(watched(submitted())).receipts.values()
    assert isinstance(error, DamageError) and error.path == path
    path.write_bytes(b'{"run": ')
    (error,) = Observer(paths, Cluster({}), 0.0).look(watched(submitted())).receipts.values()
    assert isinstance(error, DamageError) and "not valid JSON" in error.message


def without_job(host: str, pid: int, process: str, age: float = 0.0) -> RunState:
    """A state whose batch has an intent but no job, written by that process that long ago."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - age))
    state = RunState()
    events = (asked(0, "a"), intent("a"))
    state.apply(Entry(1, stamp, host, pid, process, events))
    return state


HERE, PARENT = socket.gethostname(), os.getppid()


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (without_job(HERE, os.getpid(), process_start(os.getpid())), True),
        (without_job(HERE, PARENT, process_start(PARENT)), False),
        (without_job(HERE, PARENT, "another start"), True),
        (without_job("elsewhere", 1, "1", age=30), False),
        (without_job("elsewhere", 1, "1", age=7200), True),
    ],
    ids=["our own", "a living writer", "a dead writer", "young", "old"],
)
def test_a_batch_without_a_job_is_left_to_a_writer_that_lives(
    tmp_path: Path, state: RunState, seen: bool
) -> None:
    lost = Observer(RunPaths(tmp_path), Cluster({}), 3600.0).look(state)
    assert lost.unsubmitted == (("b1",) if seen else ()) and lost.found == {}
    found = Observer(RunPaths(tmp_path), Cluster({}, job="77"), 3600.0).look(state)
    assert found.found == ({"b1": "77"} if seen else {}) and found.unsubmitted == ()


def test_a_batch_of_this_machine_is_found_while_its_workers_live(tmp_path: Path) -> None:
    """Another controller may have written an entry before `submitted` could be recorded."""
    site = SiteConfig(name="here", executor="local", python="/bin/false", parallel=1)
    executor = LocalExecutor(RunPaths(tmp_path), site)
    batch = BatchState("b1", ("b1-a",), ENTRY)
    assert executor.find(batch) is None
    job = executor.submit("b1", ["b1-a"])
    assert executor.find(batch) == job
    executor.close()
    assert executor.find(batch) is None


@pytest.mark.parametrize("kind", ["interrupted", "orphaned"])
def test_interruptions_never_add_up_to_a_penalty(kind: str) -> None:
    state = state_of(asked(0, "a"))
    state.attempts["search", "a"] = [
        AttemptState("search", 0, "a", n, "b", "t", outcome="failed", kind=kind)
        for n in range(1, 2 * MOST_ATTEMPTS)
    ]
    (action,) = decide(state, NOTHING, POLICY)
    assert isinstance(action, Submit)
    assert ("a", 0, 2 * MOST_ATTEMPTS) in action.candidates


@pytest.mark.parametrize("reason", ["CANCELLED", "PREEMPTED", "NODE_FAIL", UNKNOWN_JOB])
def test_what_slurm_ends_by_itself_is_nobodys_fault(reason: str) -> None:
    state = state_of(asked(0, "a"), intent("a"), {"event": "submitted", "batch": "b1", "job": "7"})
    (attempt,) = state.live_attempts()
    observed = Observed({}, {attempt.task: JobState("ended", reason)})
    (action,) = decide(state, observed, POLICY)
    assert isinstance(action, Fail) and not action.counted and action.message == reason
