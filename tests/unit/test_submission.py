"""How candidates are divided among tasks, and how many tasks go into one submission."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.actions import Submit
from l2s_hpc.controller.submission import Room, intent, make_tasks
from l2s_hpc.records import Recipe
from l2s_hpc.store.state import RunState
from tests.unit.events import accepted, asked, closed, shared, state_of, submitted
from tests.unit.events import intent as intended

WANTED = Submit("search", tuple((f"c{n}", n // 4, 1 + n % 2) for n in range(7)))


def site(**settings: Any) -> SiteConfig:
    return SiteConfig.model_validate({"name": "s", "executor": "slurm", **settings})


def recipe(candidate: str) -> Recipe:
    return Recipe(config={"of": candidate}, identities={})


@pytest.mark.parametrize(
    ("size", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (4, [4, 3]), (7, [7]), (9, [7])]
)
def test_candidates_are_divided_among_tasks_in_order(size: int, sizes: list[int]) -> None:
    tasks = make_tasks(WANTED, "l2s-run-000012", site(candidates_per_task=size), recipe)
    assert [len(task.candidates) for task in tasks] == sizes
    found = [(c.candidate, c.generation, c.attempt) for task in tasks for c in task.candidates]
    assert found == list(WANTED.candidates)
    assert len({task.key for task in tasks}) == len(tasks)
    assert tasks[0].key == "search-000012-0000"


def test_a_task_tells_the_node_all_that_it_needs() -> None:
    settings = {"workers_per_task": 4, "disk_seconds": 7, "models": {"org/model": "/m"}}
    task = make_tasks(WANTED, "b-1", site(candidates_per_task=7, **settings), recipe)[0]
    assert (task.workers, task.disk_seconds, task.models) == (4, 7, {"org/model": "/m"})
    assert {c.evaluation for c in task.candidates} == {"search"}
    assert [c.recipe for c in task.candidates] == [recipe(f"c{n}") for n in range(7)]


def test_the_intent_names_every_attempt_of_every_task() -> None:
    tasks = make_tasks(WANTED, "l2s-run-000012", site(candidates_per_task=4), recipe)
    event = intent("l2s-run-000012", tasks)
    state = state_of(event)
    (batch,) = state.open_batches.values()
    assert batch.name == "l2s-run-000012" and batch.tasks == tuple(task.key for task in tasks)
    found = [(a.candidate, a.generation, a.attempt, a.task) for a in batch.live]
    assert found == [
        (c.candidate, c.generation, c.attempt, task.key) for task in tasks for c in task.candidates
    ]


# Room


class Limits:
    """An executor of which only the array limit is asked."""

    def __init__(self, most_tasks: int = 1000) -> None:
        self.most_tasks = most_tasks


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def room(most_tasks: int = 1000, max_jobs: int = 0, clock: Clock | None = None) -> Room:
    given = site(max_jobs=max_jobs)
    return Room(Limits(most_tasks), given, clock or Clock())  # type: ignore[arg-type]


def test_the_array_limit_of_the_cluster_is_kept_to() -> None:
    assert room(most_tasks=30).free(RunState()) == 30


def test_the_sites_limit_counts_tasks_that_are_under_way() -> None:
    busy = [asked(0, *"abcde"), intended("a", "b"), submitted()]
    assert room(max_jobs=5).free(state_of(*busy)) == 3
    assert room(max_jobs=1).free(state_of(*busy)) == 0
    assert room(max_jobs=5).free(state_of(*busy, accepted("a"))) == 4
    assert room(max_jobs=0).free(state_of(*busy)) == 1000


def test_candidates_that_share_a_task_are_one_job() -> None:
    busy = [asked(0, *"abc"), shared("a", "b", "c"), submitted()]
    assert room(max_jobs=5).free(state_of(*busy)) == 4
    done = [accepted("a"), accepted("b"), accepted("c"), closed()]
    assert room(max_jobs=5).free(state_of(*busy, *done)) == 5


def test_a_refusal_halves_what_goes_at_once() -> None:
    of = room()
    sent, more = [8], [of.refused(8, "r")]
    for _ in range(3):
        sent.append(of.free(RunState()))
        more.append(of.refused(sent[-1], "r"))
    assert sent == [8, 4, 2, 1]
    assert more == [True, True, True, False], "a single task that is refused waits"
    assert of.free(RunState()) == 0


def pauses(of: Room, clock: Clock, times: int) -> list[float]:
    """How many seconds a single task waits after each of so many refusals."""
    found = []
    for _ in range(times):
        of.refused(1, "r")
        began = clock.now
        while not of.free(RunState()):
            clock.now += 1
        assert of.free(RunState()) == 1
        found.append(clock.now - began)
    return found


def test_a_single_task_that_is_refused_is_tried_less_and_less() -> None:
    clock = Clock()
    of = room(clock=clock)
    assert pauses(of, clock, 8) == [15, 30, 60, 120, 240, 300, 300, 300]
    of.accepted(1)
    assert pauses(of, clock, 2) == [15, 30], "Slurm has taken one in between"


def test_why_there_is_no_room_is_said_while_there_is_none() -> None:
    clock, busy = Clock(), state_of(asked(0, *"abcde"), intended("a", "b"), submitted())
    of = room(max_jobs=2, clock=clock)
    assert of.free(busy) == 0 and of.reason == "site.max_jobs = 2 tasks are under way"
    assert of.free(RunState()) == 2 and of.reason == ""
    of.refused(1, "QOSMaxSubmitJobPerUserLimit")
    assert of.free(busy) == 0 and of.reason == "QOSMaxSubmitJobPerUserLimit; waiting for room"
    clock.now += 15
    assert of.free(RunState()) == 1 and of.reason == ""


def test_after_a_refusal_of_several_nothing_waits() -> None:
    of = room()
    of.refused(2, "r")
    assert of.free(RunState()) == 1


def test_what_slurm_takes_opens_the_room_again() -> None:
    of = room()
    of.refused(40, "r")
    sent = []
    for _ in range(4):
        sent.append(of.free(RunState()))
        of.accepted(sent[-1])
    assert sent == [20, 40, 80, 160]


def test_without_a_refusal_nothing_is_held_back() -> None:
    of = room(most_tasks=500)
    of.accepted(3)
    assert of.free(RunState()) == 500


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 40))
def test_all_is_submitted_with_few_refusals_whatever_the_limit(
    wanted: int, limit: int, most_tasks: int
) -> None:
    """Slurm takes no more than `limit` jobs; they all end whenever it has refused a single one."""
    clock = Clock()
    of, queued, refusals = room(most_tasks, clock=clock), 0, 0
    total = wanted
    for _ in range(1000):
        size = min(of.free(RunState()), wanted)
        if size == 0:
            clock.now += 300
            size = min(of.free(RunState()), wanted)
        assert 1 <= size <= most_tasks
        if queued + size > limit:
            refusals += 1
            if not of.refused(size, "r"):
                queued = 0
            continue
        of.accepted(size)
        queued += size
        wanted -= size
        if not wanted:
            break
    assert not wanted
    rounds = total // limit + 1
    assert refusals <= 14 * rounds
