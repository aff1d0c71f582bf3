"""The journal's events folded into a run's state; the events are those of a real, short search."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from l2s_hpc.store.journal import Entry
from l2s_hpc.store.state import RunState

A, B, SLOW, FAST = "0a5f6d61c3b6f2ac", "147e3d57f463be43", "86988d5c89a9d677", "c617f2e5dde7dd97"
SEARCH, SELECTION, REPORT = "l2s-toy-1-000003", "l2s-toy-1-000010", "l2s-toy-1-000014"


def intent(batch: str, evaluation: str, *candidates: str, attempt: int = 1) -> dict[str, Any]:
    return {
        "event": "intent",
        "batch": batch,
        "tasks": [
            {"key": f"{batch}-{n:04d}", "candidates": [[evaluation, 0, candidate, attempt]]}
            for n, candidate in enumerate(candidates)
        ],
    }


def accepted(evaluation: str, candidate: str, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "event": "accepted",
        "evaluation": evaluation,
        "generation": 0,
        "candidate": candidate,
        "attempt": attempt,
        "content_sha256": "4bd877b7",
        "rows": 200,
        **changes,
    }


def failed(
    candidate: str, attempt: int, kind: str, counted: bool, **changes: Any
) -> dict[str, Any]:
    return {
        "event": "failed",
        "evaluation": "search",
        "candidate": candidate,
        "attempt": attempt,
        "kind": kind,
        "message": "m",
        "counted": counted,
        **changes,
    }


def asked(generation: int, *candidates: str) -> dict[str, Any]:
    genomes = [[round(0.1 * n, 1), 1.0] for n in range(len(candidates))]
    return {
        "event": "asked",
        "generation": generation,
        "genomes": genomes,
        "candidates": list(candidates),
    }


def told(generation: int, count: int) -> dict[str, Any]:
    return {
        "event": "told",
        "generation": generation,
        "objectives": [[-0.9, 54.2]] * count,
        "violations": [[-0.1]] * count,
    }


STARTED = {"event": "started", "command": "l2s run toy"}
JOURNAL: list[list[dict[str, Any]]] = [
    [STARTED],
    [asked(0, A, B)],
    [intent(SEARCH, "search", SLOW, FAST, A, B)],
    [{"event": "submitted", "batch": SEARCH, "job": "vm:29024:158659"}],
    [accepted("search", SLOW), accepted("search", FAST)],
    [accepted("search", A), failed(B, 1, "merge", True)],
    [intent("l2s-toy-1-000007", "search", B, attempt=2)],
    [{"event": "abandoned", "batch": "l2s-toy-1-000007", "reason": "it was never submitted"}],
    [{"event": "penalised", "evaluation": "search", "candidate": B, "reason": "merge: m"}],
    [told(0, 2)],
    [{"event": "stage", "evaluation": "selection", "candidates": [A, SLOW, FAST]}],
    [intent(SELECTION, "selection", A, SLOW, FAST)],
    [{"event": "submitted", "batch": SELECTION, "job": "vm:29024:158659"}],
    [accepted("selection", A), accepted("selection", SLOW), accepted("selection", FAST)],
    [{"event": "fixed", "front": [A], "picks": {"knee": A}}],
    [{"event": "stage", "evaluation": "report", "candidates": [A, SLOW, FAST]}],
    [intent(REPORT, "report", A, SLOW, FAST)],
    [{"event": "submitted", "batch": REPORT, "job": "vm:29024:158659"}],
    [accepted("report", A), accepted("report", SLOW), accepted("report", FAST)],
    [{"event": "changed", "key": "search.failures", "old": "0.5", "new": "1"}],
    [{"event": "closed", "batch": batch} for batch in (SEARCH, SELECTION, REPORT)],
    [{"event": "completed"}],
]


def entries(journal: list[list[dict[str, Any]]]) -> list[Entry]:
    return [
        Entry(n, f"2026-01-01T00:00:{n:02d}+00:00", "vm", 29024, "158659", tuple(events))
        for n, events in enumerate(journal, 1)
    ]


def fold(journal: list[list[dict[str, Any]]]) -> RunState:
    state = RunState()
    for entry in entries(journal):
        state.apply(entry)
    return state


def test_a_search_ends_complete() -> None:
    state = fold(JOURNAL)
    assert state.completed and not state.stopped and state.told == 1 and state.looks == 1
    assert state.front == (A,) and state.picks == {"knee": A}
    assert list(state.live_attempts()) == []
    assert state.stages == {"selection": (A, SLOW, FAST), "report": (A, SLOW, FAST)}
    assert state.penalised == {("search", B): "merge: m"}
    assert [t.outcome for t in state.attempts["search", B]] == ["failed", "abandoned"]
    assert [t.counted for t in state.attempts["search", B]] == [True, False]
    assert state.genomes == {A: (0.0, 1.0), B: (0.1, 1.0)}
    assert state.first_seen == {A: 0, B: 0} and state.last_time.endswith("22+00:00")
    assert state.settled("search", B) and not state.settled("report", B)
    assert list(state.batches) == [SEARCH, "l2s-toy-1-000007", SELECTION, REPORT]
    assert state.batches[SEARCH].job == "vm:29024:158659"
    assert list(state.open_batches) == ["l2s-toy-1-000007"], "it was abandoned, and may show up"


@pytest.mark.parametrize("length", range(len(JOURNAL) + 1))
def test_every_beginning_of_a_journal_is_a_state(length: int) -> None:
    before = deepcopy(JOURNAL)
    state = fold(JOURNAL[:length])
    assert state == fold(JOURNAL[:length]), "the fold is not a function of the journal"
    assert before == JOURNAL, "the fold changed the journal"
    for key, tries in state.attempts.items():
        assert [t.attempt for t in tries] == list(range(1, len(tries) + 1))
        assert sum(t.outcome == "live" for t in tries) <= 1
        assert key not in state.accepted or all(t.outcome != "live" for t in tries)
    assert state.completed == (length == len(JOURNAL))


def test_attempts_are_live_until_something_came_of_them() -> None:
    live = [sorted(a.candidate for a in fold(JOURNAL[:n]).live_attempts()) for n in range(10)]
    everyone = sorted([A, B, SLOW, FAST])
    assert live == [[], [], [], everyone, everyone, sorted([A, B]), [], [B], [], []]


def test_an_abandoned_batch_is_kept_without_live_attempts_and_its_results_stay() -> None:
    """A job under its name that shows up all the same must be recognised."""
    journal = [
        [asked(0, A, B)],
        [intent("x", "search", A, B)],
        [accepted("search", A), {"event": "abandoned", "batch": "x", "reason": "r"}],
    ]
    state = fold(journal)
    (batch,) = state.open_batches.values()
    assert batch.abandoned and batch.live == [] and state.batches == {"x": batch}
    outcomes = [state.attempts["search", c][0].outcome for c in (A, B)]
    assert outcomes == ["accepted", "abandoned"]
    assert state.attempts["search", B][0].message == "r"


def test_a_batch_is_open_until_it_is_closed() -> None:
    """Its attempts may be settled long before its jobs are gone."""
    done = [accepted("search", c) for c in (SLOW, FAST, A, B)]
    state = fold([*JOURNAL[:4], done])
    assert list(state.open_batches) == [SEARCH] and state.open_batches[SEARCH].live == []
    state = fold([*JOURNAL[:4], done, [{"event": "closed", "batch": SEARCH}]])
    assert state.open_batches == {} and list(state.batches) == [SEARCH]


def test_receipts_tell_where_attempts_ran_and_for_how_long() -> None:
    told_of_a = accepted("search", A, node="n1", seconds=100.0)
    told_of_b = failed(B, 1, "engine", True, node="n2", seconds=20.5, chunks=3)
    lost = [intent("y", "search", B, attempt=2)], [failed(B, 2, "lost", True, node="n1")]
    state = fold([*JOURNAL[:4], [told_of_a, told_of_b], *lost])
    first, second = state.attempts["search", B]
    assert (first.node, first.seconds, first.chunks) == ("n2", 20.5, 3)
    assert (second.node, second.seconds, second.chunks) == ("n1", 0.0, 0)
    assert state.gpu_seconds == 120.5
    assert state.outcomes == {"n1": [*state.attempts["search", A], second], "n2": [first]}


def test_a_task_has_begun_when_one_of_its_attempts_left_a_receipt() -> None:
    assert fold(JOURNAL[:4]).batches[SEARCH].begun == set()
    left = [accepted("search", A), failed(B, 1, "engine", True, seconds=2.0)]
    silent = [failed(SLOW, 1, "lost", True, node="n1"), failed(FAST, 1, "not begun", False)]
    state = fold([*JOURNAL[:4], [*left, *silent]])
    assert state.batches[SEARCH].begun == {f"{SEARCH}-0002", f"{SEARCH}-0003"}


def test_a_journal_without_the_fields_of_later_versions_still_folds() -> None:
    """`closed` is none of them: batches of old runs are open, and can be closed late."""
    old = [[e for e in events if e["event"] != "closed"] for events in JOURNAL[:-1]]
    state = fold([events for events in old if events])
    assert len(state.open_batches) == 4 and list(state.live_attempts()) == []
    assert state.outcomes == {} and state.gpu_seconds == 0.0 and state.site == {}
    late = fold([*old, [{"event": "closed", "batch": b} for b in (SEARCH, SELECTION, REPORT)]])
    assert list(late.open_batches) == ["l2s-toy-1-000007"]


def test_a_generation_lasts_from_its_asking_to_its_telling() -> None:
    generation = fold(JOURNAL).generations[0]
    assert generation.asked == "2026-01-01T00:00:02+00:00" and generation.seconds == 8.0
    assert fold(JOURNAL[:5]).generations[0].seconds == 0.0


def test_a_search_that_grows_chooses_anew() -> None:
    state = fold([*JOURNAL, [asked(1, B, FAST)]])
    assert state.stages == {} and state.front is None and state.picks == {}
    assert not state.completed and state.looks == 1, "a look at the report split stays counted"
    assert len(state.accepted) == 9 and state.told == 1 and len(state.generations) == 2
    assert state.first_seen[B] == 0 and state.first_seen[FAST] == 1
    assert state.genomes[B] == (0.1, 1.0), "the genome is the one it was first asked with"


def test_the_budget_that_ended_a_search_is_known_until_the_search_goes_on() -> None:
    stage = {"event": "stage", "evaluation": "selection", "candidates": [A], "spent": "9 of 8"}
    report = {"event": "stage", "evaluation": "report", "candidates": [A]}
    assert fold([*JOURNAL[:10], [stage], [report]]).spent == "9 of 8"
    assert fold([*JOURNAL[:10], [stage], [asked(1, A)]]).spent == ""
    assert fold(JOURNAL).spent == ""


def test_a_damaged_table_that_counted_is_wanted_again() -> None:
    damage = {"event": "quarantined", "evaluation": "report", "candidate": A, "reason": "r"}
    state = fold([*JOURNAL, [damage]])
    assert not state.completed and not state.settled("report", A)
    assert state.reopened == {("report", A)}
    again = [[intent("y", "report", A, attempt=2)], [accepted("report", A, attempt=2)]]
    state = fold([*JOURNAL, [damage], *again])
    assert state.reopened == set() and state.accepted["report", A].attempt == 2
    given_up = {"event": "penalised", "evaluation": "report", "candidate": A, "reason": "r"}
    assert fold([*JOURNAL, [damage], [given_up]]).reopened == set()


def test_stopped_until_started_again() -> None:
    journal = [*JOURNAL[:5], [{"event": "stopped"}]]
    assert fold(journal).stopped
    assert not fold([*journal, [STARTED]]).stopped


def test_what_was_under_way_at_a_stop_was_cancelled_by_us() -> None:
    closed = [{"event": "closed", "batch": SEARCH}]
    later = [intent(SELECTION, "selection", A)]
    stopped = [{"event": "stopped"}]
    state = fold([*JOURNAL[:4], stopped, [STARTED], later])
    assert [b.stopped for b in state.batches.values()] == [True, False]
    state = fold([*JOURNAL[:4], closed, stopped, [STARTED], later])
    assert not any(b.stopped for b in state.batches.values()), "it was over before"


def test_a_start_tells_the_site_and_what_may_change() -> None:
    first = {**STARTED, "site": {"name": "x"}, "operational": {"search.failures": 0.5}}
    second = {**STARTED, "site": {"name": "y"}, "operational": {"search.failures": 1}}
    state = fold([[first], [second]])
    assert state.site == {"name": "y"} and state.operational == {"search.failures": 1}
    assert fold([[first], [STARTED]]).site == {"name": "x"}


KINDS = ["not begun", "cancelled", "lost", "interrupted"]


@pytest.mark.parametrize(
    ("start", "forgiven"),
    [
        (STARTED, ["not begun", "interrupted"]),
        ({**STARTED, "resubmit": False}, ["not begun", "interrupted"]),
        ({**STARTED, "resubmit": True}, ["not begun", "cancelled", "interrupted"]),
        ({**STARTED, "by_user": False}, []),
        ({**STARTED, "by_user": False, "resubmit": True}, ["cancelled"]),
    ],
)
def test_a_start_forgives_what_the_user_has_seen_to(
    start: dict[str, Any], forgiven: list[str]
) -> None:
    four = [intent("x", "search", A, B, SLOW, FAST)]
    failures = [failed(c, 1, k, False) for c, k in zip((A, B, SLOW, FAST), KINDS, strict=True)]
    state = fold([four, failures, [start], [{**STARTED, "by_user": False}]])
    found = [a.kind for tries in state.attempts.values() for a in tries if a.forgiven]
    assert found == forgiven
    later = [[intent("y", "search", A, attempt=2)], [failed(A, 2, "not begun", False)]]
    state = fold([four, failures, [start], *later])
    assert [a.forgiven for a in state.attempts["search", A]] == ["not begun" in forgiven, False]


def test_unknown_events_are_left_alone() -> None:
    state = fold(JOURNAL)
    state.apply(replace(entries(JOURNAL)[0], events=({"event": "of-a-later-version"},)))
    state.last_time = fold(JOURNAL).last_time
    assert state == fold(JOURNAL)
