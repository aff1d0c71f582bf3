"""What the controller decides about attempts, batches and the course of a search; no clock."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

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
from l2s_hpc.controller.course import finished, twins
from l2s_hpc.controller.decide import decide
from l2s_hpc.controller.judge import AttemptKey, Observed
from l2s_hpc.errors import DamageError, IncompleteError
from l2s_hpc.records import Receipt
from l2s_hpc.store.journal import Entry
from l2s_hpc.store.state import AttemptState, RunState
from tests.unit.events import (
    DONE,
    ENTRY,
    NOTHING,
    POLICY,
    RUNNING,
    Event,
    abandoned,
    accepted,
    asked,
    closed,
    evaluated,
    failed,
    failure,
    intent,
    interrupted,
    job,
    penalised,
    receipt,
    shared,
    started,
    state_of,
    submitted,
    told,
)

OF_A, OF_B = ("search", "a", 1), ("search", "b", 1)


# One live attempt


def judged(
    found: Receipt | DamageError | None, jobs: dict[str, JobState], begun: bool = False
) -> Action | None:
    """What is decided of the live attempt of candidate a."""
    receipts = {} if found is None else {OF_A: found}
    observed = Observed(receipts, jobs, {OF_A: 0} if begun else {})
    actions = decide(state_of(*RUNNING), observed, POLICY)
    return actions[0] if actions else None


def expected(*fail: Any) -> Fail:
    (attempt,) = state_of(*RUNNING).attempts["search", "a"]
    return Fail(attempt, *fail)


@pytest.mark.parametrize("state", ["pending", "running", "unknown", "ended", "orphaned", "stuck"])
@pytest.mark.parametrize("kind", ["", "merge", "engine", "write", "other"])
def test_a_receipt_decides_whatever_is_said_of_the_job(state: str, kind: str) -> None:
    found = receipt(failure=failure(kind) if kind else None)
    (attempt,) = state_of(*RUNNING).attempts["search", "a"]
    wanted = expected(kind, "why", True, "h") if kind else Accept(attempt, found)
    assert judged(found, job(state, "CANCELLED")) == wanted
    assert judged(found, {}) == wanted


def test_a_damaged_receipt_is_nobodys_fault() -> None:
    assert judged(DamageError("torn"), job("running")) == expected("damaged", "torn", False)


def test_a_receipt_tells_where_and_how_long_the_attempt_ran() -> None:
    found = receipt(
        failure=failure("engine"),
        host="n3",
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:01:30+00:00",
    )
    assert judged(found, {}) == expected("engine", "why", True, "n3", 90.0)


@pytest.mark.parametrize("jobs", [{}, job("pending"), job("running"), job("unknown", "late")])
@pytest.mark.parametrize("found", [None, interrupted(), interrupted("timeout", chunks=3)])
def test_an_attempt_is_waited_for_while_its_job_may_go_on(
    found: Receipt | None, jobs: dict[str, JobState]
) -> None:
    """Also after it was interrupted: Slurm starts a job again that it has taken away."""
    assert judged(found, jobs) is None


@pytest.mark.parametrize(
    ("state", "reason", "fail"),
    [
        ("ended", "", ("lost", "its job ended without a receipt", True, "n1")),
        ("ended", "FAILED", ("lost", "FAILED", True, "n1")),
        ("ended", "OUT_OF_MEMORY", ("lost", "OUT_OF_MEMORY", True, "n1")),
        ("ended", "NODE_FAIL", ("lost", "NODE_FAIL", False, "n1")),
        ("ended", "BOOT_FAIL", ("lost", "BOOT_FAIL", False, "n1")),
        ("ended", UNKNOWN_JOB, ("lost", UNKNOWN_JOB, False, "n1")),
        ("stuck", STUCK_JOB, ("lost", STUCK_JOB, False, "n1")),
        ("ended", "PREEMPTED", ("interrupted", "PREEMPTED", False, "n1")),
        ("ended", "REVOKED", ("interrupted", "REVOKED", False, "n1")),
        ("ended", NO_ROOM_JOB, ("interrupted", NO_ROOM_JOB, False, "n1")),
        ("ended", "CANCELLED", ("cancelled", "somebody cancelled its task", False, "n1")),
        ("orphaned", "its controller has died",
         ("orphaned", "its controller has died", False, "")),
    ],
)  # fmt: skip
def test_an_attempt_that_began_and_left_no_receipt(
    state: str, reason: str, fail: tuple[Any, ...]
) -> None:
    assert judged(None, job(state, reason, "n1"), begun=True) == expected(*fail)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("", "not begun"),
        ("FAILED", "not begun"),
        ("TIMEOUT", "not begun"),
        ("OUT_OF_MEMORY", "not begun"),
        ("COMPLETED", "not begun"),
        ("CANCELLED", "cancelled"),
        ("PREEMPTED", "interrupted"),
        ("NODE_FAIL", "lost"),
        (UNKNOWN_JOB, "lost"),
    ],
)
def test_what_never_began_is_not_to_blame(reason: str, kind: str) -> None:
    fail = judged(None, job("ended", reason, "n1"))
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.counted, fail.node) == (kind, False, "n1")


@pytest.mark.parametrize(
    ("found", "state", "reason", "fail"),
    [
        (interrupted(), "ended", "", ("interrupted", "why", False)),
        (interrupted(), "ended", "FAILED", ("interrupted", "why; FAILED", False)),
        (interrupted(), "ended", "PREEMPTED", ("interrupted", "why; PREEMPTED", False)),
        (interrupted(), "ended", "NODE_FAIL", ("interrupted", "why; NODE_FAIL", False)),
        (interrupted(), "ended", UNKNOWN_JOB, ("interrupted", f"why; {UNKNOWN_JOB}", False)),
        (interrupted(), "stuck", STUCK_JOB, ("interrupted", f"why; {STUCK_JOB}", False)),
        (interrupted(), "orphaned", "dead", ("interrupted", "why; dead", False)),
        (interrupted(), "ended", "CANCELLED", ("cancelled", "why; CANCELLED", False)),
        (interrupted(), "ended", "TIMEOUT", ("timeout", "why; TIMEOUT", True)),
        (interrupted(), "ended", "DEADLINE", ("timeout", "why; DEADLINE", True)),
        (interrupted("timeout"), "ended", "FAILED", ("timeout", "why; FAILED", True)),
        (interrupted("timeout"), "ended", "", ("timeout", "why", True)),
        (interrupted("timeout"), "ended", "PREEMPTED", ("interrupted", "why; PREEMPTED", False)),
        (interrupted("timeout"), "ended", "CANCELLED", ("cancelled", "why; CANCELLED", False)),
    ],
)
def test_an_interrupted_attempt_ends_with_its_job(
    found: Receipt, state: str, reason: str, fail: tuple[Any, ...]
) -> None:
    assert judged(found, job(state, reason, "n1")) == expected(*fail, "h")


@pytest.mark.parametrize(
    ("before", "chunks", "counted"),
    [((), 0, True), ((), 1, False), ((3,), 3, True), ((3,), 2, True), ((3,), 4, False),
     ((3, 5), 5, True), ((5, 3), 4, True), ((3, 5), 6, False)],
)  # fmt: skip
def test_a_time_limit_counts_only_where_no_chunk_was_added(
    before: Sequence[int], chunks: int, counted: bool
) -> None:
    """Chunks are kept: whoever comes further each time gets to the end."""
    events = [asked(0, "a")]
    for number, done in enumerate(before, 1):
        batch = f"b{number}"
        failing = failed("a", number, False, "timeout", chunks=done)
        events += [intent("a", attempt=number, batch=batch), submitted(batch), failing]
    number = len(before) + 1
    state = state_of(*events, intent("a", attempt=number, batch="b"), submitted("b"))
    found = receipt("a", number, failure=failure("timeout"), chunks=chunks)
    observed = Observed({("search", "a", number): found}, job("ended", "TIMEOUT", task="b-a"))
    (fail,) = decide(state, observed, POLICY)
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.counted, fail.chunks) == ("timeout", counted, chunks)


@pytest.mark.parametrize("reason", ["TIMEOUT", "DEADLINE"])
def test_a_time_limit_without_a_receipt_is_a_time_limit(reason: str) -> None:
    """A worker within a long call of the engine does not hear the signal before SIGKILL."""
    fail = judged(None, job("ended", reason, "n1"), begun=True)
    assert fail == expected("timeout", reason, True, "n1")


@pytest.mark.parametrize(("before", "made"), [(0, 1), (0, 3), (2, 0), (2, 1)])
def test_chunks_that_were_made_before_a_silent_end_count(before: int, made: int) -> None:
    """Before that attempt, others had come as far as `before`."""
    earlier = failed("a", 1, False, "timeout", chunks=before)
    last = [intent("a", attempt=2, batch="b"), submitted("b")]
    state = state_of(asked(0, "a"), intent("a"), submitted(), earlier, *last)
    over = job("ended", "TIMEOUT", "n1", task="b-a")
    (fail,) = decide(state, Observed({}, over, {("search", "a", 2): made}), POLICY)
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.counted, fail.chunks) == ("timeout", not made, before + made)


@pytest.mark.parametrize("found", [None, interrupted(), interrupted("timeout")])
def test_what_l2s_stop_cancelled_is_interrupted_only(found: Receipt | None) -> None:
    state = state_of(*RUNNING, {"event": "stopped"}, started())
    receipts = {} if found is None else {OF_A: found}
    (fail,) = decide(state, Observed(receipts, job("ended", "CANCELLED")), POLICY)
    assert isinstance(fail, Fail) and (fail.kind, fail.counted) == ("interrupted", False)


# Candidates that share a task


def judged_together(observed: Observed, *events: Event) -> dict[str, tuple[str, bool]]:
    state = state_of(asked(0, "a", "b", "c"), shared("a", "b", "c"), submitted(), *events)
    actions = decide(state, observed, POLICY)
    return {f.attempt.candidate: (f.kind, f.counted) for f in actions if isinstance(f, Fail)}


DIED = job("ended", "FAILED", "n1", task="b1-0")
OVERTIME = job("ended", "TIMEOUT", "n1", task="b1-0")


def test_who_waited_in_a_task_that_died_is_not_blamed() -> None:
    assert judged_together(Observed({}, DIED, {OF_A: 0})) == {
        "a": ("lost", True),
        "b": ("interrupted", False),
        "c": ("interrupted", False),
    }


def test_a_task_that_died_between_two_candidates_has_begun() -> None:
    accepted_a = accepted("a")
    assert judged_together(Observed({}, DIED), accepted_a) == {
        "b": ("interrupted", False),
        "c": ("interrupted", False),
    }


def test_a_task_whose_first_candidate_failed_has_begun() -> None:
    with_seconds = failed("a", seconds=3.0)
    assert judged_together(Observed({}, DIED), with_seconds)["b"] == ("interrupted", False)


def test_a_task_of_which_nothing_began() -> None:
    everyone = dict.fromkeys("abc", ("not begun", False))
    assert judged_together(Observed({}, DIED)) == everyone


def test_a_receipt_of_the_same_look_counts_before_the_task_is_judged() -> None:
    observed = Observed({OF_A: receipt("a")}, DIED, {OF_A: 1, OF_B: 0})
    assert judged_together(observed) == {"b": ("lost", True), "c": ("interrupted", False)}


def test_who_was_only_graded_while_the_next_one_generated_is_not_blamed() -> None:
    """Its worker had begun the next one; that another worker of its team had says nothing."""
    both = {OF_A: 2, OF_B: 1}
    overtaken = Observed({}, DIED, both, overtaken=(OF_A,))
    assert judged_together(overtaken) == {
        "a": ("interrupted", False),
        "b": ("lost", True),
        "c": ("interrupted", False),
    }
    assert judged_together(Observed({}, DIED, both))["a"] == ("lost", True)


def test_who_is_killed_again_and_again_while_it_is_graded_comes_no_further() -> None:
    state = state_of(asked(0, "a", "b"), shared("a", "b"), submitted())
    fail = decide(state, Observed({}, DIED, {OF_A: 3, OF_B: 0}, overtaken=(OF_A,)), POLICY)[0]
    assert isinstance(fail, Fail) and fail.chunks == 3, "else it would seem to go on"
    assert fail.message == "its task ended while it was graded: FAILED"


def test_whose_turn_came_late_is_not_blamed_for_the_time_limit() -> None:
    """Ten candidates in a task that has time for seven: the eighth has done nothing wrong."""
    found: dict[AttemptKey, Receipt | DamageError] = {OF_B: interrupted("timeout", "b")}
    late = {"b": ("timeout", False), "c": ("interrupted", False)}
    assert judged_together(Observed(found, OVERTIME), accepted("a")) == late
    assert judged_together(Observed({}, OVERTIME, {OF_B: 0}), accepted("a")) == late
    both = Observed({OF_A: receipt("a"), **found}, OVERTIME, {OF_B: 0})
    assert judged_together(both) == late


def test_who_had_the_whole_time_of_its_task_is_blamed_for_the_time_limit() -> None:
    first = {"a": ("timeout", True), "b": ("interrupted", False), "c": ("interrupted", False)}
    assert judged_together(Observed({OF_A: interrupted("timeout")}, OVERTIME, {OF_A: 0})) == first
    assert judged_together(Observed({}, OVERTIME, {OF_A: 0})) == first


# Batches


def test_a_batch_that_was_found_is_adopted_and_a_lost_one_abandoned() -> None:
    state = state_of(*RUNNING[:2])
    assert decide(state, Observed({}, {}, found={"b1": "77"}), POLICY) == [Adopt("b1", "77")]
    assert decide(state, Observed({}, {}, unsubmitted=("b1",)), POLICY) == [Abandon("b1")]
    of_job = Observed({}, job("ended"), unsubmitted=("b1",))
    assert decide(state, of_job, POLICY) == [Abandon("b1")]


def test_receipts_of_a_batch_that_nobody_remembers_count() -> None:
    state = state_of(*RUNNING[:2])
    (attempt,) = state.attempts["search", "a"]
    found = receipt()
    observed = Observed({OF_A: found}, job("ended"), unsubmitted=("b1",))
    assert decide(state, observed, POLICY) == [Accept(attempt, found), Abandon("b1")]


def test_after_an_abandoned_batch_nothing_was_lost_and_all_is_submitted_again() -> None:
    state = state_of(*RUNNING[:2], abandoned())
    everyone = tuple((candidate, 0, 2) for candidate in ("slow", "fast", "a", "b"))
    assert decide(state, NOTHING, POLICY) == [Submit("search", everyone)]


def test_jobs_that_linger_are_ended_and_then_their_batch_is_closed() -> None:
    state = state_of(*RUNNING, *DONE)
    lingering = Observed({}, {}, lingering={"b1": ("7_0", "7_2")})
    assert decide(state, lingering, POLICY) == [Tell(0), End("b1", ("7_0", "7_2"))]
    assert decide(state, Observed({}, {}, lingering={"b1": ()}), POLICY) == [Close("b1")]


def test_an_abandoned_batch_whose_job_shows_up_is_ended_and_never_closed() -> None:
    """It may show up again: a controller that was frozen before sbatch may wake up any time."""
    repeated = intent("slow", "fast", "a", "b", attempt=2, batch="b2")
    state = state_of(*RUNNING[:2], abandoned(), repeated, submitted("b2"))
    ghost = Observed({}, {}, lingering={"b1": ("9",)})
    assert decide(state, ghost, POLICY) == [End("b1", ("9",))]
    assert decide(state, Observed({}, {}, lingering={"b1": ()}), POLICY) == []


# The course of a search


SELECTED: Event = {"event": "stage", "evaluation": "selection", "candidates": ["a", "slow", "fast"]}
FIXED: Event = {"event": "fixed", "front": ["a"], "picks": {}}
REPORTED: Event = {"event": "stage", "evaluation": "report", "candidates": ["a", "slow"]}
FIRST = [*RUNNING, *DONE]
SECOND = [asked(1, "a", "c"), intent("c", batch="b2"), submitted("b2"), accepted("c")]
SEARCHED = [*FIRST, told(0, 2), *SECOND, told(1, 2)]
SELECTION = evaluated("selection", "a", "slow", "fast")
REPORT = evaluated("report", "a", "slow")
ALL_CLOSED = [closed(name) for name in ("b1", "b2", "of-report")]
ENDED = [*SEARCHED, SELECTED, FIXED, REPORTED, *REPORT, *ALL_CLOSED]
COMPLETED = [*ENDED, {"event": "completed"}]
COURSE: list[tuple[list[Event], list[Action]]] = [
    ([], [Ask(0)]),
    ([asked(0, "a", "b")],
     [Submit("search", (("slow", 0, 1), ("fast", 0, 1), ("a", 0, 1), ("b", 0, 1)))]),
    (RUNNING, []),
    (FIRST[:-1], []),
    (FIRST, [Tell(0)]),
    ([*FIRST, told(0, 2)], [Ask(1)]),
    ([*FIRST, told(0, 2), asked(1, "a", "b")], [Tell(1)]),
    ([*FIRST, told(0, 2), asked(1, "a", "c")], [Submit("search", (("c", 1, 1),))]),
    ([*FIRST, told(0, 2), asked(1)], [Tell(1)]),
    (SEARCHED, [Stage("selection")]),
    ([*SEARCHED, SELECTED],
     [Submit("selection", (("a", 0, 1), ("slow", 0, 1), ("fast", 0, 1)))]),
    ([*SEARCHED, SELECTED, *SELECTION], [Fix()]),
    ([*SEARCHED, SELECTED, FIXED], [Stage("report")]),
    ([*SEARCHED, SELECTED, FIXED, REPORTED],
     [Submit("report", (("a", 0, 1), ("slow", 0, 1)))]),
    ([*SEARCHED, SELECTED, FIXED, REPORTED, *REPORT], []),
    (ENDED, [Complete()]),
    (COMPLETED, []),
]  # fmt: skip


@pytest.mark.parametrize(("events", "actions"), COURSE, ids=range(len(COURSE)))
def test_search_then_selection_then_report_then_complete(
    events: list[Event], actions: list[Action]
) -> None:
    assert decide(state_of(*events), NOTHING, POLICY) == actions


@pytest.mark.parametrize("open_batch", ["b1", "b2", "of-report"])
def test_a_run_is_complete_only_when_all_its_jobs_are_gone(open_batch: str) -> None:
    events = [event for event in ENDED if event != closed(open_batch)]
    assert decide(state_of(*events), NOTHING, POLICY) == []
    observed = Observed({}, {}, lingering={open_batch: ()})
    assert decide(state_of(*events), observed, POLICY) == [Close(open_batch)]
    assert decide(state_of(*events, closed(open_batch)), NOTHING, POLICY) == [Complete()]


def test_jobs_that_linger_hold_up_nothing_but_the_end() -> None:
    assert decide(state_of(*FIRST), NOTHING, POLICY) == [Tell(0)]
    ghost, end = Observed({}, {}, lingering={"b1": ("7_0",)}), End("b1", ("7_0",))
    for events, actions in COURSE:
        held_up = [] if actions == [Complete()] else actions
        assert decide(state_of(*events), ghost, POLICY) == [*held_up, end]


def test_an_abandoned_batch_does_not_hold_up_the_end() -> None:
    given_up = [intent("z", batch="b3"), abandoned("b3")]
    assert decide(state_of(*given_up, *ENDED), NOTHING, POLICY) == [Complete()]


TWINNED = replace(POLICY, twins=2)
NOISY: Event = {"event": "stage", "evaluation": "noise", "candidates": ["slow", "a"]}
FOUND = [*SEARCHED, SELECTED, *SELECTION, FIXED]
NOISE = evaluated("noise", "slow", "a")
WITH_NOISE: list[tuple[list[Event], list[Action]]] = [
    (FOUND, [Stage("noise")]),
    ([*FOUND, NOISY], [Submit("noise", (("slow", 0, 1), ("a", 0, 1)))]),
    ([*FOUND, NOISY, *NOISE[:-1]], []),
    ([*FOUND, NOISY, *NOISE], [Stage("report")]),
    ([*FOUND, NOISY, *NOISE, REPORTED], [Submit("report", (("a", 0, 1), ("slow", 0, 1)))]),
]


@pytest.mark.parametrize(("events", "actions"), WITH_NOISE, ids=range(len(WITH_NOISE)))
def test_noise_is_measured_between_selection_and_report(
    events: list[Event], actions: list[Action]
) -> None:
    assert decide(state_of(*events), NOTHING, TWINNED) == actions


@pytest.mark.parametrize(
    ("most", "front", "picks", "found"),
    [
        (0, ["a", "c"], {"knee": "c"}, []),
        (1, ["a", "c"], {"knee": "c"}, ["slow"]),
        (2, ["a", "c"], {"knee": "c"}, ["slow", "c"]),
        (9, ["a", "c"], {"knee": "c", "most_accurate": "c"}, ["slow", "c", "a"]),
        (9, ["slow"], {"knee": "slow"}, ["slow"]),
        (3, [], {}, ["slow"]),
        (3, ["a", "never selected"], {}, ["slow", "a"]),
    ],
)
def test_twins_are_the_slow_parent_and_then_the_picks_and_the_front(
    most: int, front: list[str], picks: dict[str, str], found: list[str]
) -> None:
    tables = evaluated("selection", "slow", "fast", "a", "c")
    fixed = FIXED | {"front": front, "picks": picks}
    state = state_of(*SEARCHED, SELECTED, *tables, fixed)
    assert twins(state, replace(POLICY, twins=most)) == found


def test_a_twin_that_cannot_be_evaluated_holds_nothing_up_not_even_a_parent() -> None:
    lost = [failed(c, number, True) | {"evaluation": "noise"} for c in ("slow", "a")
            for number in (1, 2)]  # fmt: skip
    batches = [intent("slow", "a", evaluation="noise", attempt=n, batch=f"n{n}") for n in (1, 2)]
    state = state_of(*FOUND, NOISY, *batches, *lost)
    why = "merge: try 2"
    given_up = [Penalise("noise", "slow", why), Penalise("noise", "a", why)]
    assert decide(state, NOTHING, TWINNED) == given_up
    over = [penalised(c) | {"evaluation": "noise"} for c in ("slow", "a")]
    assert decide(state_of(*FOUND, NOISY, *batches, *lost, *over), NOTHING, TWINNED) == [
        Stage("report")
    ]


def test_a_complete_run_may_get_its_noise_measured_later_and_the_report_is_looked_at_once() -> None:
    closed_too = closed("of-selection")
    over = [*FOUND, REPORTED, *REPORT, *ALL_CLOSED, closed_too, {"event": "completed"}]
    assert finished(state_of(*over), POLICY) and not finished(state_of(*over), TWINNED)
    assert decide(state_of(*over), NOTHING, TWINNED) == [Stage("noise")]
    measured = [*over, NOISY, *NOISE]
    assert decide(state_of(*measured[:-1]), NOTHING, TWINNED) == []
    done = state_of(*measured, closed("of-noise"))
    assert decide(done, NOTHING, TWINNED) == [Complete()] and done.looks == 1
    fewer = state_of(*measured, closed("of-noise"), {"event": "completed"})
    assert finished(fewer, TWINNED) and finished(fewer, POLICY)


def test_a_search_that_grows_measures_the_noise_of_its_new_front() -> None:
    longer = replace(TWINNED, generations=3)
    measured = [*FOUND, NOISY, *NOISE]
    assert decide(state_of(*measured), NOTHING, longer) == [Ask(2)]
    later = evaluated("selection", "d")
    later = [event | {"batch": "later"} if "batch" in event else event for event in later]
    grown = [*measured, asked(2, "d"), told(2, 1), SELECTED, *later, FIXED | {"front": ["d", "a"]}]
    assert decide(state_of(*grown), NOTHING, longer) == [Stage("noise")]
    chosen = NOISY | {"candidates": ["slow", "d"]}
    assert decide(state_of(*grown, chosen), NOTHING, longer) == [Submit("noise", (("d", 2, 1),))]


def test_an_empty_front_is_fixed_too() -> None:
    events = [*SEARCHED, SELECTED, FIXED | {"front": []}]
    assert decide(state_of(*events), NOTHING, POLICY) == [Stage("report")]


def test_after_an_empty_generation_the_search_does_not_ask_again() -> None:
    events = [*FIRST, told(0, 2), asked(1), told(1, 0)]
    longer = replace(POLICY, generations=9)
    assert decide(state_of(*events), NOTHING, longer) == [Stage("selection")]


def test_a_finished_search_may_grow() -> None:
    longer = replace(POLICY, generations=3)
    assert finished(state_of(*COMPLETED), POLICY) and not finished(state_of(*COMPLETED), longer)
    assert decide(state_of(*COMPLETED), NOTHING, longer) == [Ask(2)]
    grown = state_of(*COMPLETED, asked(2, "d"))
    assert decide(grown, NOTHING, longer) == [Submit("search", (("d", 2, 1),))]
    known = state_of(*COMPLETED, asked(2, "a"), told(2, 1))
    assert decide(known, NOTHING, longer) == [Stage("selection")]


def test_a_fixed_search_that_grows_does_so_before_the_report_split_is_looked_at() -> None:
    longer = replace(POLICY, generations=3)
    state = state_of(*SEARCHED, SELECTED, FIXED)
    assert decide(state, NOTHING, longer) == [Ask(2)]


def test_a_single_evaluation_in_place_of_a_search() -> None:
    only = replace(POLICY, only=("search", ("slow",)))
    assert decide(state_of(), NOTHING, only) == [Submit("search", (("slow", 0, 1),))]
    done = [intent("slow"), submitted(), accepted("slow"), closed()]
    assert decide(state_of(*done[:-1]), NOTHING, only) == []
    assert decide(state_of(*done), NOTHING, only) == [Complete()]
    assert decide(state_of(*done, {"event": "completed"}), NOTHING, only) == []
    assert decide(state_of(*done, {"event": "completed"}), NOTHING, POLICY) == [Ask(0)]


def test_a_damaged_table_is_evaluated_again_before_anything_else() -> None:
    damage = {"event": "quarantined", "evaluation": "selection", "candidate": "a", "reason": "r"}
    selected = [*SEARCHED, SELECTED, *SELECTION, FIXED]
    assert decide(state_of(*selected, damage), NOTHING, POLICY) == [
        Submit("selection", (("a", 0, 2),))
    ]
    repeated = intent("a", evaluation="selection", attempt=2, batch="b9")
    mended = [damage, repeated, submitted("b9"), accepted("a", "selection", 2)]
    assert decide(state_of(*selected, *mended), NOTHING, POLICY) == [Stage("report")]


# Whatever happens


KEYS = [(e, c) for e in ("search", "selection") for c in ("slow", "a", "b")]
KINDS = ["merge", "lost", "timeout", "interrupted", "cancelled", "not begun"]


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
    for name in draw(st.sets(st.sampled_from(["selection", "noise", "report"]))):
        state.stages[name] = tuple(draw(st.lists(st.sampled_from("ab"), max_size=2)))
    tasks = [{"key": f"{c}{n}", "candidates": []} for _, c in KEYS for n in (1, 2, 3)]
    state.apply(Entry(1, ENTRY.time, "h", 1, "1", ({**intent(), "tasks": tasks},)))
    for evaluation, candidate in KEYS:
        outcomes = st.sampled_from(["live", "failed", "abandoned", "accepted"])
        for number, outcome in enumerate(draw(st.lists(outcomes, max_size=3)), 1):
            attempt = AttemptState(evaluation, 0, candidate, number, "b1", f"{candidate}{number}")
            attempt.outcome = outcome
            if outcome == "failed":
                attempt.kind, attempt.counted = draw(st.sampled_from(KINDS)), draw(st.booleans())
            if outcome == "live":
                state.batches["b1"].live.append(attempt)
            state.attempts.setdefault((evaluation, candidate), []).append(attempt)
    for key in draw(st.sets(st.sampled_from(KEYS), max_size=4)):
        state.penalised[key] = "r"
    for evaluation, candidate in draw(st.sets(st.sampled_from(KEYS), max_size=4)):
        result = accepted(candidate, evaluation)
        del result["event"]
        state.accepted[evaluation, candidate] = result  # type: ignore[assignment]
    state.reopened = draw(st.sets(st.sampled_from(KEYS), max_size=2)) - state.accepted.keys()
    return state


STATES = ["pending", "running", "unknown", "ended", "orphaned", "stuck"]
REASONS = ["", "FAILED", "CANCELLED", "PREEMPTED", "TIMEOUT", UNKNOWN_JOB]


@st.composite
def observations(draw: st.DrawFn, state: RunState) -> Observed:
    receipts: dict[tuple[str, str, int], Receipt | DamageError] = {}
    jobs: dict[str, JobState] = {}
    begun: dict[AttemptKey, int] = {}
    for attempt in state.live_attempts():
        found = draw(st.sampled_from(["", "", "ok", "merge", "interrupted", "timeout", "torn"]))
        key = attempt.key
        if found == "torn":
            receipts[key] = DamageError("torn")
        elif found:
            why = failure(found) if found != "ok" else None
            receipts[key] = receipt(attempt.candidate, attempt.attempt, failure=why)
        known = draw(st.sampled_from(["", *STATES]))
        if known:
            jobs |= job(known, draw(st.sampled_from(REASONS)), task=attempt.task)
        if draw(st.booleans()):
            begun[key] = draw(st.integers(0, 2))
    lost = draw(st.sampled_from([(), ("b1",)]))
    lingering = draw(st.sampled_from([{}, {"b1": ()}, {"b1": ("7",)}]))
    return Observed(receipts, jobs, begun, lost, lingering=lingering)


@settings(max_examples=100)
@given(st.data())
def test_nothing_is_submitted_twice_and_decisions_repeat(data: st.DataObject) -> None:
    state = data.draw(states())
    observed = data.draw(st.sampled_from([NOTHING]) | observations(state))
    before = deepcopy(state)
    try:
        actions = decide(state, observed, POLICY)
    except IncompleteError as error:
        with pytest.raises(IncompleteError) as repeated:
            decide(state, observed, POLICY)
        assert str(repeated.value) == str(error)
        return
    assert actions == decide(state, observed, POLICY) and state == before
    for action in actions:
        if isinstance(action, Submit):
            others = [a for a in actions if a is not action]
            assert all(isinstance(a, End) for a in others), "a submission is recorded alone"
            for candidate, _, number in action.candidates:
                key = (action.evaluation, candidate)
                known = state.attempts.get(key, [])
                assert all(attempt.outcome != "live" for attempt in known)
                assert not state.settled(*key) and number == len(known) + 1
        if isinstance(action, Accept):
            assert action.attempt.outcome == "live" and action.receipt.failure is None
        if isinstance(action, Fail):
            assert action.attempt.outcome == "live"
            assert not (action.counted and action.kind in ("interrupted", "cancelled"))


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
                events.append(abandoned(name))
            case Close(name):
                events.append(closed(name))
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


FATES = ["wait", "ok", "interrupted", "timeout", "torn", *STATES[2:]]


class Night:
    """Nodes, jobs and controllers that fail in every way until a hypothesis has had enough."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.bad = data, True

    def draw(self, choices: Sequence[Any], lucky: Any) -> Any:
        return self.data.draw(st.sampled_from(choices)) if self.bad else lucky

    def look(self, state: RunState) -> Observed:
        receipts: dict[tuple[str, str, int], Receipt | DamageError] = {}
        jobs: dict[str, JobState] = {}
        begun: dict[AttemptKey, int] = {}
        for attempt in state.live_attempts():
            key = (attempt.evaluation, attempt.candidate, attempt.attempt)
            if state.batches[attempt.batch].job is None:
                continue
            fate = self.draw(FATES, "ok")
            if fate == "torn":
                receipts[key] = DamageError("torn")
            elif fate in ("ok", "interrupted", "timeout"):
                why = None if fate == "ok" else failure(fate)
                receipts[key] = receipt(attempt.candidate, attempt.attempt, failure=why)
            if fate in (*STATES, "interrupted", "timeout"):
                over = "ended" if fate in ("interrupted", "timeout") else fate
                jobs |= job(over, self.draw(REASONS, ""), task=attempt.task)
            if self.draw([True, False], True):
                begun[key] = self.draw([0, 1, 2], 0)
        there = {n: b for n, b in state.open_batches.items() if not b.abandoned}
        without_job = [name for name, batch in there.items() if batch.job is None]
        lost = [name for name in without_job if self.draw([True, False], False)]
        settled = [n for n, b in there.items() if not b.live and b.job is not None]
        found = {name: "7" for name in without_job if name not in lost}
        lingering = {name: self.draw([(), ("7",)], ()) for name in settled}
        seen = {name: jobs for name, jobs in lingering.items() if self.draw([True, False], True)}
        return Observed(receipts, jobs, begun, lost, found, seen)


@settings(max_examples=60)
@given(st.data())
def test_whatever_befalls_the_nodes_a_search_ends_and_each_table_counts_once(
    data: st.DataObject,
) -> None:
    """A controller that may die after every entry; its user starts it again where it pauses."""
    state, night = RunState(), Night(data)
    lucky_after = data.draw(st.integers(0, 25), label="lucky after")
    twinned = data.draw(st.sampled_from([0, 2]), label="twins")
    patient = replace(POLICY, attempts=50, failures=1.0, twins=twinned)
    for number in range(1, 150):
        night.bad = number <= lucky_after
        try:
            events = events_of(state, decide(state, night.look(state), patient), f"b{number}")
        except IncompleteError as error:
            pauses = ("cancelled", "before they begin", "came no further")
            assert any(words in str(error) for words in pauses)
            events = [started(resubmit=True)]
        for event in events:
            if event["event"] == "accepted":
                assert not state.settled(event["evaluation"], event["candidate"])
        if events:
            state.apply(Entry(number, ENTRY.time, "h", 1, "1", tuple(events)))
        if state.completed:
            break
    assert state.completed and state.looks == 1 and list(state.live_attempts()) == []
    assert all(batch.abandoned for batch in state.open_batches.values()), "jobs are left behind"
    assert {c for e, c in state.accepted if e == "search"} >= {"slow", "fast"}
    assert ("noise" in state.stages) == bool(twinned)
