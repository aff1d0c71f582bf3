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


def accepted(evaluation: str, candidate: str, attempt: int = 1) -> dict[str, Any]:
    return {
        "event": "accepted",
        "evaluation": evaluation,
        "generation": 0,
        "candidate": candidate,
        "attempt": attempt,
        "content_sha256": "4bd877b7",
        "rows": 200,
    }


def failed(candidate: str, attempt: int, kind: str, counted: bool) -> dict[str, Any]:
    return {
        "event": "failed",
        "evaluation": "search",
        "candidate": candidate,
        "attempt": attempt,
        "kind": kind,
        "message": "m",
        "counted": counted,
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


JOURNAL: list[list[dict[str, Any]]] = [
    [{"event": "started", "command": "l2s run toy"}],
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
    assert state.first_seen == {A: 0, B: 0} and state.last_time.endswith("21+00:00")
    assert state.settled("search", B) and not state.settled("report", B)
    assert state.batches[SEARCH].job == "vm:29024:158659" and len(state.batches) == 3


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


def test_an_abandoned_batch_is_forgotten_and_its_results_stay() -> None:
    journal = [
        [asked(0, A, B)],
        [intent("x", "search", A, B)],
        [accepted("search", A), {"event": "abandoned", "batch": "x", "reason": "r"}],
    ]
    state = fold(journal)
    assert state.batches == {}
    outcomes = [state.attempts["search", c][0].outcome for c in (A, B)]
    assert outcomes == ["accepted", "abandoned"]


def test_a_search_that_grows_chooses_anew() -> None:
    state = fold([*JOURNAL, [asked(1, B, FAST)]])
    assert state.stages == {} and state.front is None and state.picks == {}
    assert not state.completed and state.looks == 1, "a look at the report split stays counted"
    assert len(state.accepted) == 9 and state.told == 1 and len(state.generations) == 2
    assert state.first_seen[B] == 0 and state.first_seen[FAST] == 1
    assert state.genomes[B] == (0.1, 1.0), "the genome is the one it was first asked with"


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
    assert not fold([*journal, [{"event": "started", "command": "l2s run toy"}]]).stopped


def test_unknown_events_are_left_alone() -> None:
    state = fold(JOURNAL)
    state.apply(replace(entries(JOURNAL)[0], events=({"event": "of-a-later-version"},)))
    state.last_time = fold(JOURNAL).last_time
    assert state == fold(JOURNAL)
