"""What a search may use and has used, and what the controller decides by it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.config import BudgetConfig
from l2s_hpc.controller.actions import Action, Ask, Stage, Tell
from l2s_hpc.controller.budget import Budget, Usage, finalists, spent, usage
from l2s_hpc.controller.decide import Policy, decide, finished
from l2s_hpc.controller.judge import Observed
from l2s_hpc.store.journal import Entry
from l2s_hpc.store.state import RunState
from tests.unit.events import (
    NOTHING,
    POLICY,
    Event,
    accepted,
    again,
    asked,
    failed,
    intent,
    penalised,
    receipt,
    state_of,
    submitted,
    told,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
POPULATION = 4


def limits(**given_limits: Any) -> Budget:
    """A budget of generations of four, with two references, and ten times the items at the end."""
    return Budget(
        limits=BudgetConfig.model_validate(given_limits),
        population=POPULATION,
        final=finalists(2, POPULATION),
        items=(("search", 10), ("selection", 40), ("report", 60)),
    )


def policy(budget: Budget, generations: int = 9) -> Policy:
    return replace(POLICY, generations=generations, budget=budget, references={}, parents={})


def searched(*generations: str, seconds: float = 360.0) -> list[Event]:
    """Generations that are told; each of their candidates took so long."""
    events: list[Event] = []
    for number, candidates in enumerate(generations):
        batch = f"b{number}"
        known = {c for before in generations[:number] for c in before}
        new = [c for c in candidates if c not in known]
        events += [asked(number, *candidates), intent(*new, batch=batch), submitted(batch)]
        events += [accepted(c, seconds=seconds) for c in new]
        events.append(told(number, len(candidates)))
    return events


def timed(*events: tuple[float, Event]) -> RunState:
    """The state after events that happened so many seconds after the start."""
    state = RunState()
    for number, (seconds, event) in enumerate(events, 1):
        time = (START + timedelta(seconds=seconds)).isoformat()
        state.apply(Entry(number, time, "h", 1, "1", (event,)))
    return state


def at(seconds: float) -> float:
    return (START + timedelta(seconds=seconds)).timestamp()


# What was used


def test_all_attempts_that_left_a_receipt_are_used_gpu_time() -> None:
    events = [asked(0, "a", "b"), intent("slow", "a", "b"), submitted()]
    events += [accepted("slow", seconds=100.0), accepted("a", seconds=200.0)]
    events += [failed("b", seconds=60.0), *again("b", 2, counted=False, kind="lost")]
    found = usage(state_of(*events))
    assert found == Usage(gpu_hours=0.1, candidates=2, unknown=1)


def test_attempts_that_never_began_used_nothing() -> None:
    events = [asked(0, "a"), intent("a"), submitted(), failed("a", 1, False, "not begun")]
    assert usage(state_of(*events)) == Usage(0.0, 1, 0)


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00.500+00:00", 60.5),
        ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:10+00:00", 10.0),
        ("2026-01-01T00:00:10+00:00", "2026-01-01T00:00:00+00:00", 0.0),
        ("", "", 0.0),
        ("yesterday", "2026-01-01T00:00:00+00:00", 0.0),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:10+00:00", 0.0),
    ],
    ids=["seconds", "time zones", "a clock that was set back", "empty", "no time", "no zone"],
)
def test_an_attempt_lasts_from_its_start_to_its_end(start: str, end: str, seconds: float) -> None:
    assert receipt(started=start, ended=end).lasted == seconds
    again = receipt(started=start, ended=end, earlier_seconds=7.0)
    assert again.lasted == seconds + 7, "Slurm had started it before"


def test_an_attempt_lasts_as_long_as_it_had_a_device() -> None:
    """It was graded while the next one generated."""
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00"}
    assert receipt(**times, device_seconds=41.5).lasted == 41.5
    assert receipt(**times, device_seconds=0.0, earlier_seconds=7.0).lasted == 7


# What is left


def test_without_limits_nothing_is_ever_spent() -> None:
    assert spent(state_of(*searched("abcd", "efgh")), limits(), at(1e9)) == ""


def test_no_generation_begins_that_would_exceed_the_candidates() -> None:
    state = state_of(*searched("abcd", "abef"))
    assert spent(state, limits(max_candidates=10), 0) == ""
    reason = "6 candidates, budget.max_candidates = 9"
    assert spent(state, limits(max_candidates=9), 0) == reason


def test_no_generation_begins_whose_cost_would_exceed_the_gpu_hours() -> None:
    """Used: 8 x 0.1 h. Foreseen: 4 candidates, then 4 models on ten times the items: 0.1 h each."""
    state = state_of(*searched("abcd", "efgh"))
    needed = 0.8 + 0.1 * (4 + 4 * 10)
    assert spent(state, limits(max_gpu_hours=needed + 0.001), 0) == ""
    assert spent(state, limits(max_gpu_hours=needed - 0.001), 0) == (
        "0.80 GPU-hours, and 5.20 with another generation and what comes after the search; "
        "budget.max_gpu_hours = 5.199"
    )


def test_noise_twins_are_reserved_too() -> None:
    """Three of them answer the forty selection items again: 0.4 h each."""
    state = state_of(*searched("abcd", "efgh"))
    needed = 0.8 + 0.1 * (4 + 4 * 10) + 3 * 0.4
    for hours, fits in ((needed + 0.001, True), (needed - 0.001, False)):
        budget = limits(max_gpu_hours=hours)
        budget = replace(budget, twins=3, items=(*budget.items, ("noise", 40)))
        assert (spent(state, budget, 0) == "") == fits


def test_failed_attempts_make_the_next_generation_dearer() -> None:
    failing = [asked(0, *"abcd"), intent(*"abcd"), submitted(), failed("a", seconds=360.0)]
    failing += [intent("a", attempt=2, batch="b2"), submitted("b2")]
    failing += [accepted(c, attempt=2 if c == "a" else 1, seconds=360.0) for c in "abcd"]
    failing.append(told(0, POPULATION))
    dear = 0.5 + 0.125 * (4 + 4 * 10)
    assert spent(state_of(*failing), limits(max_gpu_hours=dear + 0.001), 0) == ""
    assert spent(state_of(*failing), limits(max_gpu_hours=dear - 0.001), 0) != ""


def test_a_finished_search_foresees_by_the_mean_time_of_an_answer() -> None:
    """80 answers of the search, 160 + 240 of two models at the end: 36 s each, 4.8 h in all."""
    final = [intent("a", "b", evaluation=name, batch=name) for name in ("selection", "report")] + [
        accepted(c, name, seconds=36.0 * items)
        for name, items in (("selection", 40), ("report", 60))
        for c in "ab"
    ]
    state = state_of(*searched("abcd", "efgh"), *final)
    assert state.gpu_seconds == pytest.approx(3600 * 2.8)
    assert spent(state, limits(max_gpu_hours=2.8 + 0.1 * (4 + 4 * 10) + 0.001), 0) == ""


def test_a_generation_begins_only_if_it_would_end_before_the_deadline() -> None:
    """Generations took 100 s, 300 s and, over a pause, 10,000 s."""
    state = timed(
        (0, asked(0, "a")), (100, told(0, 1)),
        (100, asked(1, "a")), (400, told(1, 1)),
        (400, asked(2, "a")), (10400, told(2, 1)),
    )  # fmt: skip
    budget = limits(deadline=START + timedelta(seconds=11000))
    assert spent(state, budget, at(10700)) == ""
    assert spent(state, budget, at(10701)) == (
        "another generation would end after budget.deadline = 2026-01-01 03:03:20+00:00"
    )


def test_candidates_that_were_given_up_are_part_of_the_mean() -> None:
    """The next generation may have as many of them: five candidates took 0.1 h each."""
    given_up = [intent("z", batch="z"), failed("z", seconds=360.0), penalised("z")]
    state = state_of(*searched("abcd"), *given_up)
    needed = 0.5 + 0.1 * (4 + 4 * 10)
    assert spent(state, limits(max_gpu_hours=needed + 0.001), 0) == ""
    assert spent(state, limits(max_gpu_hours=needed - 0.001), 0) != ""


@given(
    st.integers(1, 20),
    st.floats(0.01, 20),
    st.floats(0, 2000),
    st.integers(0, 20),
    st.floats(0, 20),
    st.floats(0, 2000),
)
def test_a_raised_budget_is_never_tighter(
    candidates: int, hours: float, until: float, more: int, longer: float, later: float
) -> None:
    state = state_of(*searched("abcd", "abef"))
    tight = limits(
        max_candidates=candidates, max_gpu_hours=hours, deadline=START + timedelta(seconds=until)
    )
    loose = limits(
        max_candidates=candidates + more,
        max_gpu_hours=hours + longer,
        deadline=START + timedelta(seconds=until + later),
    )
    if spent(state, loose, at(1000)):
        assert spent(state, tight, at(1000))


# What is decided by it


def next_of(events: list[Event], of: Policy, seconds: float = 0.0) -> list[Action]:
    return decide(state_of(*events), Observed({}, {}, now=at(seconds)), of)


SPENT = policy(limits(max_candidates=6))


def test_a_search_that_has_spent_its_budget_goes_on_to_its_end() -> None:
    assert next_of(searched("ab"), SPENT) == [Ask(1)]
    assert next_of(searched("abcd"), SPENT) == [Stage("selection")]


def test_a_generation_that_was_asked_for_is_finished() -> None:
    within = [*searched("abcd"), asked(1, "a", "b")]
    assert next_of(within, SPENT) == [Tell(1)]


def test_the_first_generation_always_comes() -> None:
    for budget in (limits(max_candidates=1), limits(deadline=START)):
        assert next_of([], policy(budget), 1e6) == [Ask(0)]


FIXED: Event = {"event": "fixed", "front": [], "picks": {}}
COMPLETED = [
    *searched("abcd"),
    {"event": "stage", "evaluation": "selection", "candidates": []},
    FIXED,
    {"event": "stage", "evaluation": "report", "candidates": []},
    {"event": "completed"},
]


def test_a_run_that_spent_its_budget_is_finished_until_the_budget_is_raised() -> None:
    state = state_of(*COMPLETED)
    assert finished(state, SPENT)
    raised = policy(limits(max_candidates=8))
    assert not finished(state, raised)
    assert decide(state, NOTHING, raised) == [Ask(1)]


def test_a_run_that_its_deadline_ended_is_finished_until_the_deadline_is_moved() -> None:
    state, ended = state_of(*COMPLETED), policy(limits(deadline=START))
    assert finished(state, ended, at(1)) and not finished(state, ended, at(-1))
    assert not finished(state, policy(limits(deadline=START + timedelta(days=1))), at(1))


def test_nothing_is_done_about_a_run_that_its_deadline_ended() -> None:
    assert next_of(COMPLETED, policy(limits(deadline=START)), 1) == []
