"""What the controller sees of jobs and receipts; the clock and the executor are a test's own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.cluster.jobs import COMPLETING, STUCK_JOB, UNKNOWN_JOB, JobState
from l2s_hpc.cluster.local import LocalExecutor
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.actions import Accept, Close, End, Fail
from l2s_hpc.controller.decide import decide
from l2s_hpc.controller.judge import Observed
from l2s_hpc.controller.observe import Observer
from l2s_hpc.errors import DamageError
from l2s_hpc.records import Receipt
from l2s_hpc.store.files import process_start, write_json
from l2s_hpc.store.journal import Entry
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import BatchState, RunState
from tests.unit.events import (
    ENTRY,
    POLICY,
    Event,
    abandoned,
    accepted,
    asked,
    closed,
    failed,
    failure,
    intent,
    interrupted,
    receipt,
    shared,
    state_of,
    submitted,
)

GRACE = 60.0
OF_A = ("search", "a", 1)


class Cluster:
    """An executor that says what a test wants, and remembers what it was asked for."""

    most_tasks = 10

    def __init__(self, states: Mapping[str, JobState] | None = None, job: str | None = None):
        self.states, self.job = states or {}, job
        self.watched: list[list[str]] = []
        self.on_watch: Any = lambda: None

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        raise NotImplementedError

    def find(self, batch: BatchState) -> str | None:
        return self.job

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        self.watched.append(sorted(batches))
        self.on_watch()
        tasks = [task for batch in batches.values() for task in batch.tasks]
        return {task: self.states[task] for task in tasks if task in self.states}

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        raise NotImplementedError

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Watch:
    """An observer of one run at a time of its own, which begins at 1000 s."""

    def __init__(self, folder: Path, cluster: Cluster | LocalExecutor, grace: float = GRACE):
        self.now = 1000.0
        self.paths = RunPaths(folder)
        self.cluster, self.grace = cluster, grace
        self.observer = self.another()

    def another(self) -> Observer:
        """What a controller that begins now observes with."""
        return Observer(self.paths, self.cluster, self.grace, lambda: self.now)

    def look(self, state: RunState, after: float = 0.0) -> Observed:
        self.now += after
        return self.observer.look(state)


def leave(paths: RunPaths, value: Any, candidate: str = "a", attempt: int = 1) -> Path:
    """Leave a receipt and, as the node does before it, its tables."""
    where = paths.attempt("search", 0, candidate, attempt)
    if isinstance(value, Receipt):
        value = value.model_dump(mode="json")
    write_json(where.receipt, value)
    where.scores.touch()
    where.outputs.touch()
    return where.receipt


def watched(*events: Event) -> RunState:
    """A state with one live attempt, of candidate a in batch b1."""
    return state_of(asked(0, "a"), intent("a"), *events)


LIVE = watched(submitted())
OVER = watched(submitted(), accepted("a"))
FAILED = {"b1-a": JobState("ended", "FAILED", "n1")}


def fails(observed: Observed) -> list[Fail]:
    """What is decided to have failed in LIVE."""
    return [action for action in decide(LIVE, observed, POLICY) if isinstance(action, Fail)]


# The grace period


def test_a_job_is_over_only_after_the_grace_period(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(FAILED))
    for after, seen in ((0.0, "unknown"), (59.9, "unknown"), (0.1, "ended"), (500, "ended")):
        (found,) = watch.look(LIVE, after).jobs.values()
        assert found.state == seen and found.node == "n1"


def test_the_grace_period_begins_anew_when_a_job_ran_in_between(tmp_path: Path) -> None:
    """Slurm may have started it again."""
    cluster = Cluster(FAILED)
    watch = Watch(tmp_path, cluster)
    watch.look(LIVE)
    cluster.states = {"b1-a": JobState("running")}
    assert watch.look(LIVE, 100).jobs["b1-a"].state == "running"
    cluster.states = FAILED
    assert watch.look(LIVE).jobs["b1-a"].state == "unknown"
    assert watch.look(LIVE, 60).jobs["b1-a"].state == "ended"


def test_without_grace_a_job_is_over_at_once(tmp_path: Path) -> None:
    assert Watch(tmp_path, Cluster(FAILED), 0.0).look(LIVE).jobs["b1-a"].state == "ended"


@pytest.mark.parametrize("state", ["pending", "running", "unknown", "orphaned"])
def test_other_states_are_passed_on_at_once(tmp_path: Path, state: Any) -> None:
    said = {"b1-a": JobState(state, "why", "n1", "7_0")}
    assert Watch(tmp_path, Cluster(said)).look(LIVE).jobs == said


def test_the_grace_period_goes_on_in_another_controller(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(FAILED))
    watch.look(LIVE)
    restarted = watch.another()
    restarted.since |= watch.observer.since
    watch.now += GRACE
    assert restarted.look(LIVE).jobs["b1-a"].state == "ended"
    assert watch.another().look(LIVE).jobs["b1-a"].state == "unknown", "nothing was remembered"


def test_what_is_settled_is_no_longer_remembered(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(FAILED))
    watch.look(LIVE)
    assert watch.observer.since == {"task b1-a": 1000.0}
    watch.look(watched(submitted(), failed("a"), closed()))
    assert watch.observer.since == {}


def test_a_job_that_slurm_holds_is_stuck_after_the_grace_period(tmp_path: Path) -> None:
    """The task may have finished well, and its receipt may be on its way."""
    watch = Watch(tmp_path, Cluster({"b1-a": JobState("stuck", STUCK_JOB, "n1", "7_0")}))
    assert watch.look(LIVE).jobs["b1-a"].state == "unknown"
    observed = watch.look(LIVE, GRACE)
    assert observed.jobs["b1-a"].state == "stuck"
    (fail,) = fails(observed)
    assert not fail.counted


def test_the_end_of_one_task_says_nothing_of_another(tmp_path: Path) -> None:
    state = state_of(asked(0, "a", "b"), intent("a", "b"), submitted())
    cluster = Cluster({**FAILED, "b1-b": JobState("running")})
    watch = Watch(tmp_path, cluster)
    watch.look(state)
    cluster.states = {**FAILED, "b1-b": JobState("ended")}
    seen = watch.look(state, GRACE).jobs
    assert (seen["b1-a"].state, seen["b1-b"].state) == ("ended", "unknown")


# Who has begun


def test_who_left_a_claim_has_begun(tmp_path: Path) -> None:
    state = state_of(asked(0, "a", "b"), shared("a", "b"), submitted())
    watch = Watch(tmp_path, Cluster({"b1-0": JobState("ended", "FAILED")}), 0.0)
    assert watch.look(state).started == {}
    of_a = watch.paths.attempt("search", 0, "a", 1)
    write_json(of_a.owner(0), {})
    assert watch.look(state).started == {OF_A: 0}
    for number in (0, 1):
        of_a.chunk(number).touch()
        write_json(of_a.chunk(number).with_suffix(".json"), {})
    of_a.chunk(2).touch()
    assert watch.look(state).started == {OF_A: 2}, "a chunk counts when it is durable"


def test_claims_are_looked_for_only_where_a_job_is_over(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(FAILED))
    write_json(watch.paths.attempt("search", 0, "a", 1).owner(0), {})
    assert watch.look(LIVE).started == {}
    assert watch.look(LIVE, GRACE).started == {OF_A: 0}


def test_an_attempt_is_overtaken_by_the_next_one_of_the_same_worker(tmp_path: Path) -> None:
    state = state_of(asked(0, "a", "b", "c"), shared("a", "b", "c"), submitted())
    watch = Watch(tmp_path, Cluster({"b1-0": JobState("ended", "FAILED")}), 0.0)
    first, second = ({"job": "j", "host": "n1", "pid": pid} for pid in (1, 2))

    def claim(candidate: str, claim: object) -> None:
        paths = watch.paths.attempt("search", 0, candidate, 1)
        write_json(paths.owner(len(paths.owners())), claim)

    claim("a", first)
    claim("b", second)
    assert watch.look(state).overtaken == (), "two workers of a team"
    claim("c", first)
    assert watch.look(state).overtaken == (OF_A,)
    claim("a", second)
    assert watch.look(state).overtaken == (OF_A,), "the last claim counts: of a and b, b is later"
    claim("b", [])
    assert watch.look(state).overtaken == (), "nobody knows whose b is"


# Receipts


def test_a_receipt_that_came_while_jobs_were_watched_is_seen(tmp_path: Path) -> None:
    """Else a job that ended between the two looks would be called lost."""
    cluster = Cluster(FAILED)
    watch = Watch(tmp_path, cluster, 0.0)
    cluster.on_watch = lambda: leave(watch.paths, receipt())
    (action,) = decide(LIVE, watch.look(LIVE), POLICY)
    assert isinstance(action, Accept)


@pytest.mark.parametrize("name", ["scores.parquet", "outputs.parquet"])
def test_a_receipt_without_its_tables_is_given_the_grace_period(tmp_path: Path, name: str) -> None:
    """A shared disk may show the receipt before the tables that were written before it."""
    watch = Watch(tmp_path, Cluster({"b1-a": JobState("running")}))
    table = leave(watch.paths, receipt()).with_name(name)
    table.unlink()
    assert watch.look(LIVE).receipts == {}
    assert watch.look(LIVE, 59).receipts == {}
    table.touch()
    assert watch.look(LIVE).receipts == {OF_A: receipt()}
    table.unlink()
    assert watch.look(LIVE).receipts == {}, "the period begins anew"
    assert watch.look(LIVE, GRACE).receipts == {OF_A: receipt()}


def test_a_receipt_of_a_failure_needs_no_table(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster())
    why = receipt(failure=failure("merge"))
    leave(watch.paths, why).with_name("scores.parquet").unlink()
    assert watch.look(LIVE).receipts == {OF_A: why}


@pytest.mark.parametrize("name", ["scores.parquet", "outputs.parquet"])
def test_whose_receipt_waits_for_its_table_is_not_lost(tmp_path: Path, name: str) -> None:
    watch = Watch(tmp_path, Cluster(FAILED))
    write_json(watch.paths.attempt("search", 0, "a", 1).owner(0), {})
    watch.look(LIVE)
    leave(watch.paths, receipt()).with_name(name).unlink()
    watch.look(LIVE, 30)
    assert fails(watch.look(LIVE, 30)) == []
    assert watch.look(LIVE, 30).receipts == {OF_A: receipt()}, "the step finds that it is damaged"


def test_nothing_is_asked_where_receipts_say_all(tmp_path: Path) -> None:
    cluster = Cluster()
    watch = Watch(tmp_path, cluster)
    leave(watch.paths, receipt())
    observed = watch.look(LIVE)
    assert observed.receipts == {OF_A: receipt()} and observed.jobs == {}
    assert cluster.watched == [] and observed.unsubmitted == ()


@pytest.mark.parametrize("found", [receipt(failure=failure("engine")), {"torn": 1}])
def test_failures_and_damage_need_no_look_at_the_job(tmp_path: Path, found: Any) -> None:
    cluster = Cluster()
    watch = Watch(tmp_path, cluster)
    leave(watch.paths, found)
    assert watch.look(LIVE).receipts.keys() == {OF_A} and cluster.watched == []


@pytest.mark.parametrize("kind", ["interrupted", "timeout"])
def test_the_job_of_an_interrupted_attempt_is_looked_at(tmp_path: Path, kind: str) -> None:
    """Whether Slurm starts it again decides what becomes of the attempt."""
    cluster = Cluster({"b1-a": JobState("pending", "BeginTime")})
    watch = Watch(tmp_path, cluster)
    leave(watch.paths, interrupted(kind))
    assert watch.look(LIVE).jobs["b1-a"].state == "pending" and cluster.watched == [["b1"]]


def test_one_query_for_all_batches_and_none_for_closed_ones(tmp_path: Path) -> None:
    second = [intent("b", batch="b2"), submitted("b2"), intent("c", batch="b3"), submitted("b3")]
    state = watched(submitted(), *second, accepted("c"), closed("b3"))
    cluster = Cluster()
    Watch(tmp_path, cluster).look(state)
    assert cluster.watched == [["b1", "b2"]]


@pytest.mark.parametrize(
    "changes",
    [{"candidate": "b"}, {"evaluation": "report"}, {"attempt": 2}, {"generation": 1}],
    ids=str,
)
def test_a_receipt_of_another_attempt_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    watch = Watch(tmp_path, Cluster())
    path = leave(watch.paths, receipt(**changes))
    (error,) = watch.look(LIVE).receipts.values()
    assert isinstance(error, DamageError) and error.path == path
    assert "the receipt of another attempt" in error.message


@pytest.mark.parametrize("value", [{}, [], {"run": 1}, receipt().model_dump() | {"more": 1}])
def test_what_is_not_a_receipt_is_damage(tmp_path: Path, value: Any) -> None:
    watch = Watch(tmp_path, Cluster())
    path = leave(watch.paths, value)
    (error,) = watch.look(LIVE).receipts.values()
    assert isinstance(error, DamageError) and error.path == path
    path.write_bytes(b'{"run": ')
    (error,) = watch.look(LIVE).receipts.values()
    assert isinstance(error, DamageError) and "not valid JSON" in error.message


# Jobs that linger


RUNS = {"b1-a": JobState("running", node="n1", job="7_0")}


def test_a_job_that_has_left_its_receipt_may_end_by_itself(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(RUNS))
    assert watch.look(OVER).lingering == {}
    assert watch.look(OVER, 59).lingering == {}
    assert watch.look(OVER, 1).lingering == {"b1": ("7_0",)}


def test_a_node_that_is_not_done_with_a_job_holds_no_batch_open(tmp_path: Path) -> None:
    """A job may be COMPLETING for hours on a node that hangs, and cannot be ended any more."""
    completing = {"b1-a": JobState("running", COMPLETING, "n1", "7_0")}
    watch = Watch(tmp_path, Cluster(completing))
    assert watch.look(OVER).lingering == {}
    assert watch.look(OVER, GRACE).lingering == {"b1": ()}


def test_beside_a_job_that_completes_others_are_ended(tmp_path: Path) -> None:
    both = [accepted("a"), accepted("b")]
    state = state_of(asked(0, "a", "b"), intent("a", "b"), submitted(), *both)
    completing = {"b1-a": JobState("running", COMPLETING, "n1", "7_0")}
    cluster = Cluster({**completing, "b1-b": JobState("running", node="n2", job="7_1")})
    assert Watch(tmp_path, cluster, 0.0).look(state).lingering == {"b1": ("7_1",)}


def test_a_job_that_lingers_is_told_to_end_once_per_grace_period(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(RUNS))
    watch.look(OVER)
    told = [bool(watch.look(OVER, 10).lingering) for _ in range(30)]
    times = [number for number, ends in enumerate(told) if ends]
    assert len(times) >= 3, "it is told again"
    assert all(later - earlier >= 6 for earlier, later in pairwise(times))


def test_a_batch_whose_jobs_are_gone_can_be_closed(tmp_path: Path) -> None:
    for gone in ("ended", "orphaned"):
        watch = Watch(tmp_path, Cluster({"b1-a": JobState(gone)}))  # type: ignore[arg-type]
        observed = watch.look(OVER)
        assert observed.lingering == {"b1": ()}
        assert Close("b1") in decide(OVER, observed, POLICY)


def test_only_the_jobs_that_linger_are_ended(tmp_path: Path) -> None:
    state = state_of(
        asked(0, "a", "b"), intent("a", "b"), submitted(), accepted("a"), accepted("b")
    )
    states = {"b1-a": JobState("ended"), "b1-b": JobState("pending", "", "", "7_1")}
    watch = Watch(tmp_path, Cluster(states), 0.0)
    assert watch.look(state).lingering == {"b1": ("7_1",)}


def test_a_batch_with_a_live_attempt_does_not_linger(tmp_path: Path) -> None:
    state = state_of(asked(0, "a", "b"), intent("a", "b"), submitted(), accepted("a"))
    states = {**RUNS, "b1-b": JobState("running", job="7_1")}
    assert Watch(tmp_path, Cluster(states), 0.0).look(state).lingering == {}


def test_a_job_that_slurm_holds_is_ended_without_grace(tmp_path: Path) -> None:
    """It will never end by itself."""
    held = {"b1-a": JobState("stuck", STUCK_JOB, "", "7_0")}
    assert Watch(tmp_path, Cluster(held)).look(OVER).lingering == {"b1": ("7_0",)}


def test_the_job_of_an_abandoned_batch_is_ended_at_once(tmp_path: Path) -> None:
    """Another controller was frozen between its intent and sbatch, and wakes up."""
    state = watched(abandoned(), intent("a", attempt=2, batch="b2"), submitted("b2"))
    states = {**RUNS, "b2-a": JobState("running", job="8_0")}
    observed = Watch(tmp_path, Cluster(states)).look(state)
    assert observed.lingering == {"b1": ("7_0",)}
    only_a = replace(POLICY, references={}, parents={})
    assert decide(state, observed, only_a) == [End("b1", ("7_0",))]


BETWEEN = [submitted(), accepted("a"), closed(), intent("b", batch="b2"), submitted("b2")]


@pytest.mark.parametrize("ghost", ["stuck", "pending", "running"])
def test_between_two_evaluations_ghosts_of_closed_batches_are_ended(
    tmp_path: Path, ghost: Any
) -> None:
    """A slurmctld that was killed may start again what it had called completed."""
    cluster = Cluster({"b1-a": JobState(ghost, "", "", "7_0"), "b2-b": JobState("ended")})
    state = watched(*BETWEEN, accepted("b"))
    observed = Watch(tmp_path, cluster).look(state)
    assert cluster.watched == [["b1", "b2"]]
    assert observed.lingering == {"b1": ("7_0",), "b2": ()}
    assert decide(state, observed, POLICY) == [Close("b2"), End("b1", ("7_0",))]


def test_closed_batches_are_left_alone_while_something_is_under_way(tmp_path: Path) -> None:
    cluster = Cluster()
    Watch(tmp_path, cluster).look(watched(*BETWEEN))
    assert cluster.watched == [["b2"]]


def test_a_closed_batch_without_ghosts_is_not_closed_again(tmp_path: Path) -> None:
    gone = {"b1-a": JobState("ended", UNKNOWN_JOB), "b2-b": JobState("ended")}
    observed = Watch(tmp_path, Cluster(gone)).look(watched(*BETWEEN, accepted("b")))
    assert observed.lingering == {"b2": ()}


def test_where_all_is_closed_nothing_is_asked(tmp_path: Path) -> None:
    cluster = Cluster(RUNS)
    Watch(tmp_path, cluster).look(watched(*BETWEEN, accepted("b"), closed("b2")))
    assert cluster.watched == []


def test_an_abandoned_batch_alone_is_not_asked_for(tmp_path: Path) -> None:
    cluster = Cluster(RUNS)
    assert Watch(tmp_path, cluster).look(watched(abandoned())).lingering == {}
    assert cluster.watched == []


def test_waiting_for_jobs_that_linger_goes_on_in_another_controller(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster(RUNS))
    watch.look(OVER)
    restarted = watch.another()
    restarted.since |= watch.observer.since
    watch.now += GRACE
    assert restarted.look(OVER).lingering == {"b1": ("7_0",)}


def test_a_settled_batch_of_another_machines_workers_can_be_closed(tmp_path: Path) -> None:
    """A run directory that was copied to another machine, or a laptop whose name changed."""
    there: Event = {"event": "submitted", "batch": "b1", "job": "elsewhere:1:1"}
    site = SiteConfig(name="here", executor="local")
    watch = Watch(tmp_path, LocalExecutor(RunPaths(tmp_path), site))
    state = watched(there, accepted("a"))
    assert watch.look(state).lingering == {"b1": ()}


# Batches whose submission nobody recorded


def without_job(host: str, pid: int, process: str, age: float = 0.0) -> RunState:
    """A state whose batch has an intent but no job, written by that process that long ago."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(1_800_000_000 - age))
    state = RunState()
    state.apply(Entry(1, stamp, host, pid, process, (asked(0, "a"), intent("a"))))
    return state


HERE, PARENT = socket.gethostname(), os.getppid()


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (without_job(HERE, os.getpid(), process_start(os.getpid())), True),
        (without_job(HERE, PARENT, process_start(PARENT)), False),
        (without_job(HERE, PARENT, process_start(PARENT), age=299), False),
        (without_job(HERE, PARENT, process_start(PARENT), age=301), True),
        (without_job(HERE, PARENT, "another start"), True),
        (without_job("elsewhere", 1, "1", age=59), False),
        (without_job("elsewhere", 1, "1", age=61), True),
    ],
    ids=["our own", "a living writer", "slow", "hanging", "a dead writer", "young", "old"],
)
def test_a_batch_without_a_job_is_left_to_a_writer_that_lives(
    tmp_path: Path, state: RunState, seen: bool
) -> None:
    for job in (None, "77"):
        watch = Watch(tmp_path, Cluster(job=job))
        observed = watch.look(state, 1_800_000_000 - 1000)
        assert observed.unsubmitted == (("b1",) if seen and job is None else ())
        assert observed.found == ({"b1": "77"} if seen and job else {})


def test_a_batch_with_a_job_or_that_was_abandoned_is_not_looked_up(tmp_path: Path) -> None:
    for event in (submitted(), abandoned()):
        observed = Watch(tmp_path, Cluster(job="77")).look(watched(event))
        assert observed.found == {} and observed.unsubmitted == ()


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


def test_the_time_of_the_look_is_told(tmp_path: Path) -> None:
    observed = Watch(tmp_path, Cluster()).look(state_of(), 5)
    assert observed == replace(Observed({}, {}, found={}), now=1005.0)


def test_a_job_that_vanished_is_over_after_the_grace_period(tmp_path: Path) -> None:
    watch = Watch(tmp_path, Cluster({"b1-a": JobState("ended", UNKNOWN_JOB)}))
    assert fails(watch.look(LIVE)) == []
    (fail,) = fails(watch.look(LIVE, GRACE))
    assert (fail.kind, fail.counted) == ("lost", False)
