"""What the controller decides about failures: penalties, pauses, cancelled tasks, bad nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.controller.actions import Action, Penalise, Submit, Tell
from l2s_hpc.controller.decide import MOST_ATTEMPTS, MOST_STARTS, bad_nodes, decide
from l2s_hpc.errors import IncompleteError
from l2s_hpc.store.state import AttemptState, RunState
from tests.unit.events import (
    DONE,
    NOTHING,
    POLICY,
    RUNNING,
    Event,
    accepted,
    again,
    asked,
    failed,
    intent,
    penalised,
    started,
    state_of,
    submitted,
    tries,
)

OTHERS = [DONE[0], DONE[1], DONE[3]]
"""All but candidate a."""


def next_of(*events: Event) -> list[Action]:
    return decide(state_of(*events), NOTHING, POLICY)


def submit_a(attempt: int, *avoid: str) -> list[Action]:
    return [Submit("search", (("a", 0, attempt),), avoid)]


def paused(*events: Event) -> str:
    """Why the search does not go on after these events."""
    with pytest.raises(IncompleteError) as error:
        next_of(*events)
    return str(error.value)


# Penalties


@pytest.mark.parametrize(
    ("outcomes", "action"),
    [
        ([True], Submit("search", (("a", 0, 2),))),
        ([False, False, False], Submit("search", (("a", 0, 4),))),
        ([False, True, False], Submit("search", (("a", 0, 4),))),
        ([True, True], Penalise("search", "a", "merge: try 2")),
        ([True, False, True], Penalise("search", "a", "merge: try 3")),
    ],
)
def test_the_same_failure_twice_leads_to_a_penalty(outcomes: list[bool], action: Action) -> None:
    assert next_of(*RUNNING, *OTHERS, *tries("a", *outcomes)) == [action]


def failures(*kinds: str) -> list[Event]:
    """Counted failures of candidate a, of these kinds, one after another."""
    events = [failed("a", 1, True, kinds[0])]
    for number, kind in enumerate(kinds[1:], 2):
        events += again("a", number, kind=kind)
    return [*RUNNING, *OTHERS, *events]


@pytest.mark.parametrize(
    ("kinds", "given_up"),
    [
        (["lost", "engine"], False),
        (["lost", "engine", "timeout"], False),
        (["lost", "engine", "lost"], True),
        (["lost", "engine", "timeout", "write"], True),
    ],
)
def test_failures_of_different_kinds_are_given_twice_as_many_attempts(
    kinds: list[str], given_up: bool
) -> None:
    (action,) = next_of(*failures(*kinds))
    last = f"{kinds[-1]}: try {len(kinds)}"
    assert action == Penalise("search", "a", last) if given_up else isinstance(action, Submit)


def test_attempts_that_come_to_nothing_end_although_nobody_is_to_blame() -> None:
    """A candidate whose table is damaged each time, or whose job vanishes each time."""
    damaged = tries("a", *[False] * (MOST_ATTEMPTS - 1), kind="damaged")
    assert next_of(*RUNNING, *OTHERS, *damaged) == submit_a(MOST_ATTEMPTS)
    damaged = tries("a", *[False] * MOST_ATTEMPTS, kind="lost")
    reason = "too many attempts came to nothing"
    assert next_of(*RUNNING, *OTHERS, *damaged) == [Penalise("search", "a", reason)]


def test_a_time_limit_that_cuts_again_and_again_pauses_the_search() -> None:
    """In a team two candidates may share the time of each task, and neither is to blame."""
    many = tries("a", *[False] * MOST_ATTEMPTS, kind="timeout")
    with pytest.raises(IncompleteError, match="20 times in a row and came no further"):
        next_of(*RUNNING, *OTHERS, *many)


def test_orphaned_attempts_never_add_up_to_a_penalty() -> None:
    many = tries("a", *[False] * 2 * MOST_ATTEMPTS, kind="orphaned")
    assert next_of(*RUNNING, *OTHERS, *many) == submit_a(2 * MOST_ATTEMPTS + 1)


def interrupted(times: int, chunks: Sequence[int] = (0,)) -> list[Event]:
    """Interruptions of candidate a in a row; each time it had come so far."""
    events = [*RUNNING, *OTHERS, failed("a", 1, False, "interrupted", chunks=chunks[0])]
    for number in range(2, times + 1):
        done = chunks[(number - 1) % len(chunks)]
        events += again("a", number, counted=False, kind="interrupted", chunks=done)
    return events


def test_who_is_interrupted_again_and_again_and_comes_no_further_pauses_the_search() -> None:
    assert next_of(*interrupted(MOST_ATTEMPTS - 1)) == submit_a(MOST_ATTEMPTS)
    many = interrupted(MOST_ATTEMPTS, [3])
    assert paused(*many) == (
        "a was interrupted 20 times in a row and came no further, the last time: try 20\n"
        "  Hint: try smaller chunks (protocol.chunk_items) in a new run, or steadier nodes"
    )
    assert "came no further" in paused(*many, started(by_user=False))
    assert next_of(*many, started()) == submit_a(MOST_ATTEMPTS + 1)


def test_who_comes_further_may_be_interrupted_without_end() -> None:
    many = interrupted(3 * MOST_ATTEMPTS, range(3 * MOST_ATTEMPTS))
    assert next_of(*many) == submit_a(3 * MOST_ATTEMPTS + 1)


def test_another_end_in_between_is_no_interruption_in_a_row() -> None:
    number = MOST_ATTEMPTS
    events = [*interrupted(number - 1), *again("a", number, counted=False, kind="orphaned")]
    events += again("a", number + 1, counted=False, kind="interrupted")
    assert next_of(*events) == submit_a(number + 2)


def test_abandoned_attempts_never_add_up_to_a_penalty() -> None:
    state = state_of(*RUNNING, *OTHERS)
    state.attempts["search", "a"] = [
        AttemptState("search", 0, "a", n, "b1", "t", outcome="abandoned")
        for n in range(1, 2 * MOST_ATTEMPTS)
    ]
    assert decide(state, NOTHING, POLICY) == submit_a(2 * MOST_ATTEMPTS)


def test_what_failed_is_tried_again_while_others_run() -> None:
    assert next_of(*RUNNING, failed("a")) == submit_a(2)


def test_who_failed_before_comes_last_in_a_submission() -> None:
    """It may take its task's other candidates with it."""
    batch = [asked(0, "a", "b", "c"), intent("slow", "fast", "a", "b", "c"), submitted()]
    outcomes = [accepted("slow"), accepted("fast"), failed("a", kind="lost")]
    never_ran = [failed(c, counted=False, kind="interrupted") for c in ("b", "c")]
    (action,) = next_of(*batch, *outcomes, *never_ran)
    assert isinstance(action, Submit) and [c for c, _, _ in action.candidates] == ["b", "c", "a"]


def test_a_penalised_candidate_does_not_hold_the_generation_up() -> None:
    assert next_of(*RUNNING, *DONE[:3], *tries("b", True, True), penalised("b")) == [Tell(0)]


def test_a_parents_failure_stops_the_search() -> None:
    assert paused(*RUNNING, *tries("fast", True, True)) == (
        "the parent 'fast' cannot be evaluated, and all is compared with it: merge: try 2\n"
        "  Hint: mend the cause, raise site.attempts by one, and give the same command again"
    )
    state = state_of(*RUNNING, *DONE[2:], DONE[0], *tries("fast", True, True))
    wanted = [Submit("search", (("fast", 0, 3),))]
    assert decide(state, NOTHING, replace(POLICY, attempts=3)) == wanted


def test_too_many_failures_pause_the_search() -> None:
    lost = [penalised(candidate) for candidate in "abc"]
    events = [asked(0, "a", "b", "c"), intent("slow", "fast"), submitted(), *DONE[:2], *lost]
    assert paused(*events) == (
        "3 of 5 candidates failed in generation 0, more than search.failures = 0.5; "
        "the last reason: r\n"
        "  Hint: see the receipts under attempts/; raise --set search.failures to go on"
    )
    assert decide(state_of(*events), NOTHING, replace(POLICY, failures=0.6)) == [Tell(0)]


# Tasks that somebody cancelled


CANCELLED = [*RUNNING, *OTHERS, failed("a", 1, False, "cancelled")]


def test_what_somebody_cancelled_is_not_sent_again_unasked() -> None:
    assert paused(*CANCELLED) == (
        "somebody cancelled the tasks of 1 candidates, and nothing else is to do\n"
        "  Hint: send them again with --resubmit-cancelled, or always with "
        "--set site.resubmit_cancelled=N"
    )


def test_the_search_pauses_only_when_nothing_else_is_under_way() -> None:
    """Others of the generation may still bring their results."""
    assert next_of(*RUNNING, failed("a", 1, False, "cancelled")) == []


def test_others_are_sent_again_while_the_cancelled_ones_are_withheld() -> None:
    both = [*RUNNING, *DONE[:2], failed("a", 1, False, "cancelled"), failed("b", 1, False, "lost")]
    assert next_of(*both) == [Submit("search", (("b", 0, 2),))]


def test_resubmit_cancelled_forgives_what_was_cancelled_until_then() -> None:
    assert next_of(*CANCELLED, started(resubmit=True)) == submit_a(2)
    once_more = [started(resubmit=True), *again("a", 2, counted=False, kind="cancelled")]
    assert "somebody cancelled" in paused(*CANCELLED, *once_more)
    assert next_of(*CANCELLED, *once_more, started(resubmit=True)) == submit_a(3)


@pytest.mark.parametrize("start", [started(), started(resubmit=False), {"event": "started"}])
def test_starting_again_is_not_asking_for_what_was_cancelled(start: Event) -> None:
    assert "somebody cancelled" in paused(*CANCELLED, start)


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_site_may_send_cancelled_tasks_again_some_times(allowed: int) -> None:
    policy = replace(POLICY, resubmit_cancelled=allowed)
    events = [*CANCELLED]
    for number in range(2, allowed + 2):
        assert decide(state_of(*events), NOTHING, policy) == submit_a(number)
        events += again("a", number, counted=False, kind="cancelled")
    with pytest.raises(IncompleteError, match="somebody cancelled"):
        decide(state_of(*events), NOTHING, policy)


def test_being_cancelled_never_adds_up_to_a_penalty() -> None:
    many = tries("a", *[False] * 2 * MOST_ATTEMPTS, kind="cancelled")
    assert next_of(*RUNNING, *OTHERS, *many, started(resubmit=True)) == submit_a(
        2 * MOST_ATTEMPTS + 1
    )


# Tasks that end before they begin


def vain(times: int) -> list[Event]:
    return [*RUNNING, *OTHERS, *tries("a", *[False] * times, kind="not begun")]


def test_tasks_that_do_not_begin_pause_the_search_and_name_their_log() -> None:
    for times in range(1, MOST_STARTS):
        assert next_of(*vain(times)) == submit_a(times + 1)
    assert paused(*vain(MOST_STARTS)) == (
        "tasks end before they begin: try 3, task a3-a\n"
        "  Hint: see logs/a3*, or `l2s doctor --probe`; then the same command"
    )


def test_a_new_start_tries_again_to_begin() -> None:
    events = [*vain(MOST_STARTS), started()]
    assert next_of(*events) == submit_a(MOST_STARTS + 1)
    for number in range(MOST_STARTS + 1, 2 * MOST_STARTS):
        events += again("a", number, counted=False, kind="not begun")
        assert next_of(*events) == submit_a(number + 1)
    events += again("a", 2 * MOST_STARTS, counted=False, kind="not begun")
    assert "tasks end before they begin" in paused(*events)


def test_a_controller_that_starts_itself_again_does_not_try_anew() -> None:
    """A job that resubmits itself, or a clock: nobody has mended anything."""
    by_itself = started(by_user=False)
    assert "tasks end before they begin" in paused(*vain(MOST_STARTS), by_itself)
    assert next_of(*vain(MOST_STARTS), by_itself, started(by_user=True)) == submit_a(
        MOST_STARTS + 1
    )


def test_not_beginning_never_adds_up_to_a_penalty() -> None:
    assert next_of(*vain(2 * MOST_ATTEMPTS), started()) == submit_a(2 * MOST_ATTEMPTS + 1)


def test_only_starts_in_a_row_pause_the_search() -> None:
    events = [*RUNNING, *OTHERS, failed("a", 1, False, "not begun")]
    for number, kind in enumerate(["interrupted", "not begun", "interrupted", "not begun"], 2):
        events += again("a", number, counted=False, kind=kind)
    assert next_of(*events) == submit_a(6)
    events += again("a", 6, counted=False, kind="not begun")
    assert next_of(*events) == submit_a(7)
    events += again("a", 7, counted=False, kind="not begun")
    assert "before they begin: try 7" in paused(*events)


# Nodes


def test_a_candidate_is_tried_again_elsewhere() -> None:
    assert next_of(*RUNNING, *OTHERS, failed("a", kind="lost", node="n1")) == submit_a(2, "n1")
    twice = [failed("a", kind="lost", node="n2"), *again("a", 2, kind="engine", node="n1")]
    assert next_of(*RUNNING, *OTHERS, *twice) == submit_a(3, "n1", "n2")


@pytest.mark.parametrize("kind", ["lost", "engine", "write", "other", "damaged"])
def test_failures_that_a_node_may_cause_are_avoided_there(kind: str) -> None:
    assert next_of(*RUNNING, *OTHERS, failed("a", 1, False, kind, node="n1")) == submit_a(2, "n1")


@pytest.mark.parametrize("kind", ["merge", "timeout", "interrupted", "orphaned"])
def test_failures_that_no_node_causes_are_not(kind: str) -> None:
    assert next_of(*RUNNING, *OTHERS, failed("a", 1, False, kind, node="n1")) == submit_a(2)


def test_a_node_on_which_tasks_do_not_begin_is_avoided() -> None:
    events = [*RUNNING, *OTHERS, failed("a", 1, False, "not begun", node="n1")]
    assert next_of(*events) == submit_a(2, "n1")
    assert bad(*(failed(c, 1, False, "not begun", node="n1") for c in "abc")) == ["n1"]


def bad(*outcomes: Event) -> list[str]:
    """The bad nodes after outcomes of five candidates, at three failures in a row."""
    batch = [asked(0, *"abcde"), intent(*"abcde"), submitted()]
    return bad_nodes(state_of(*batch, *outcomes), 3)


def lost(candidate: str, node: str = "n1") -> Event:
    return failed(candidate, kind="lost", node=node)


def test_a_node_is_bad_when_candidates_fail_there_one_after_another() -> None:
    assert bad(lost("a"), lost("b")) == []
    assert bad(lost("a"), lost("b"), lost("c")) == ["n1"]
    assert bad(lost("a"), lost("b"), lost("c", "n2")) == []


def test_a_bad_node_is_avoided_by_everyone() -> None:
    """The candidates that failed there are done by now, elsewhere."""
    events: list[Event] = [asked(0, *"abcd"), intent("slow", "fast", *"abcd"), submitted()]
    events += [lost(c) for c in "abc"]
    done = [accepted("slow"), accepted("fast"), failed("d", 1, False, "interrupted", node="n2")]
    repeated = [intent("a", "b", "c", attempt=2, batch="b2"), submitted("b2")]
    again_done = [accepted(c, attempt=2, node="n2") for c in "abc"]
    assert next_of(*events, *done, *repeated, *again_done) == [
        Submit("search", (("d", 0, 2),), ("n1",))
    ]


def test_the_worst_nodes_come_first() -> None:
    """Where Slurm has too few others, the rest is taken again."""
    events: list[Event] = [asked(0, *"abcd"), intent("slow", "fast", *"abcd"), submitted()]
    events += [lost(c, "n9") for c in "abc"] + [lost("d", "n1")]
    (action,) = next_of(*events, accepted("slow"), accepted("fast"))
    assert isinstance(action, Submit) and action.avoid == ("n9", "n1")


def test_a_success_clears_a_node() -> None:
    worked = accepted("c", node="n1")
    assert bad(lost("a"), lost("b"), worked, lost("d")) == []
    assert bad(worked, lost("a"), lost("b"), lost("d")) == ["n1"]


def test_one_candidate_makes_no_bad_node() -> None:
    """It fails everywhere: that is its own fault."""
    events = [asked(0, "a"), intent("a"), submitted(), lost("a")]
    for number in (2, 3, 4):
        events += again("a", number, kind="lost", node="n1")
    assert bad_nodes(state_of(*events), 3) == []


def test_failures_of_candidates_that_were_given_up_are_not_the_nodes() -> None:
    assert bad(lost("a"), lost("b"), lost("c"), penalised("a")) == []
    assert bad(lost("a"), lost("b"), lost("c"), lost("d"), penalised("a")) == ["n1"]


@pytest.mark.parametrize("kind", ["interrupted", "cancelled", "timeout", "orphaned", "merge"])
def test_what_no_node_causes_makes_none_bad(kind: str) -> None:
    assert bad(*(failed(c, kind=kind, node="n1") for c in "abcd")) == []
    assert bad(lost("a"), lost("b"), failed("c", kind=kind, node="n1")) == []


def test_interruptions_do_not_clear_a_node() -> None:
    assert bad(
        lost("a"), failed("e", 1, False, "interrupted", node="n1"), lost("b"), lost("c")
    ) == ["n1"]


def test_who_does_not_say_where_it_ran_blames_no_node() -> None:
    assert bad(*(failed(c, kind="lost") for c in "abcd")) == []


OUTCOMES = st.sampled_from(["lost", "engine", "interrupted", "accepted"])


def naively_bad(history: Sequence[tuple[str, str]], given_up: set[str], faults: int) -> bool:
    streak: list[str] = []
    for candidate, outcome in history:
        if outcome == "accepted":
            streak = []
        elif outcome != "interrupted" and candidate not in given_up:
            streak.append(candidate)
    return len(set(streak)) >= faults


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), OUTCOMES), max_size=12),
    st.sets(st.sampled_from("abcd"), max_size=2),
    st.integers(1, 4),
)
def test_bad_nodes_are_those_with_a_streak(
    history: list[tuple[str, str]], given_up: set[str], faults: int
) -> None:
    state = RunState()
    state.penalised = dict.fromkeys((("search", c) for c in given_up), "r")
    for number, (candidate, outcome) in enumerate(history, 1):
        attempt = AttemptState("search", 0, candidate, number, "b1", "t")
        attempt.outcome = "accepted" if outcome == "accepted" else "failed"
        attempt.kind = "" if outcome == "accepted" else outcome
        state.outcomes.setdefault("n1", []).append(attempt)
    assert bad_nodes(state, faults) == (["n1"] if naively_bad(history, given_up, faults) else [])
