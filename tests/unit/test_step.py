"""Steps of a controller on a mini run; the executor is a test's own and records its calls."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc import open_run
from l2s_hpc.cluster.jobs import Executor, JobState
from l2s_hpc.controller import start
from l2s_hpc.controller.resolve import load
from l2s_hpc.controller.start import open_controller
from l2s_hpc.controller.step import Controller
from l2s_hpc.controller.verify import verify
from l2s_hpc.errors import DamageError, IncompleteError, LimitError, SubmitError, Unreachable
from l2s_hpc.store import files
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.store.journal import Event, Journal
from l2s_hpc.store.layout import AttemptPaths, RunPaths
from l2s_hpc.store.scores import OUTPUTS, read_table
from l2s_hpc.store.state import AttemptState, BatchState
from l2s_hpc.task.worker import Worker
from tests.mini import Mini, outcome, state_of, write_mini

ALL = 7
"""Tasks of a mini run's first submission: four candidates, two parents, their average."""


class Nodes:
    """An executor whose tasks are done within `submit`, unless it is told not to.

    Attributes:
        calls: what was asked of it, in order: a verb and what it was given.
        errors: raised by the next submissions, one each.
        on_submit: called when a batch is with Slurm, before its job is told.
        works: whether tasks are done. states: what is said of tasks; a job is over by default.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.most_tasks, self.works = run, 1000, True
        self.calls: list[tuple[Any, ...]] = []
        self.errors: list[Exception] = []
        self.states: dict[str, JobState] = {}
        self.there: dict[str, Sequence[str]] = {}
        self.on_submit: Callable[[str], None] = lambda batch: None

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        self.calls.append(("submit", batch, len(tasks), tuple(avoid)))
        if self.errors:
            raise self.errors.pop(0)
        self.there[batch] = tasks
        if self.works:
            worker = Worker(self.run)
            for task in tasks:
                worker.do(task)
            worker.close()
        self.on_submit(batch)
        return "77"

    def find(self, batch: BatchState) -> str | None:
        self.calls.append(("find", batch.name))
        return "77" if batch.name in self.there else None

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        tasks = [task for batch in batches.values() for task in batch.tasks]
        return {task: self.states.get(task, JobState("ended")) for task in tasks}

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        self.calls.append(("end", batch, tuple(jobs)))

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        self.calls.append(("cancel", *batches))

    def close(self) -> None:
        self.calls.append(("close",))

    def sizes(self) -> list[int]:
        """How many tasks each submission had, refused ones too."""
        return [call[2] for call in self.calls if call[0] == "submit"]


class Lab:
    """A mini run with its executor, for any number of controllers."""

    def __init__(self, mini: Mini, folder: Path) -> None:
        self.mini, self.paths = mini, RunPaths(folder)
        self.nodes, self.passed = Nodes(folder), 0.0

    def clock(self) -> float:
        """The time, and what a test let pass besides."""
        return time.time() + self.passed

    def controller(self, *settings: str, **options: Any) -> Controller:
        config, site = load(str(self.mini.job), str(self.mini.site), list(settings))
        return open_controller(config, site, self.paths.folder, "l2s run", **options)

    def begun(self, *settings: str) -> Controller:
        """A controller that has asked for the first generation and submits next."""
        controller = self.controller(*settings)
        assert controller.step() and len(controller.state.generations) == 1
        return controller

    def attempt(self, attempt: AttemptState) -> AttemptPaths:
        return self.paths.attempt(
            attempt.evaluation, attempt.generation, attempt.candidate, attempt.attempt
        )

    def elsewhere(self, *events: Event) -> None:
        """Write an entry as another controller does."""
        journal = Journal(self.paths.journal)
        journal.refresh()
        assert journal.append(list(events))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return write_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture
def lab(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    found = Lab(mini, tmp_path / "run")

    def make_executor(*given: Any) -> Executor:
        return found.nodes

    monkeypatch.setattr(start, "make_executor", make_executor)
    monkeypatch.setattr(start, "Controller", partial(Controller, clock=found.clock))
    # Nobody pulls the plug here, and a search syncs some thousand files.
    monkeypatch.setattr(files, "_fsync", lambda path: None)
    yield found


def drive(*controllers: Controller, told: int = 0) -> None:
    """Step in turn until so many generations are told, or else until the run is complete."""
    for _ in range(200):
        for controller in controllers:
            controller.refresh()
            if controller.finished or 0 < told == controller.state.told:
                return
            controller.step()
    raise AssertionError("the run does not end")


def test_a_search_from_its_beginning_to_its_end(lab: Lab) -> None:
    controller = lab.controller()
    drive(controller)
    state = controller.state
    assert state.completed and len(state.generations) == 3 and not state.open_batches
    assert all(len(tries) == 1 for tries in state.attempts.values())
    assert lab.nodes.sizes()[0] == ALL
    assert {call[0] for call in lab.nodes.calls} == {"submit"}
    again = lab.controller()
    assert again.finished and again.state == state


def test_two_controllers_on_one_run_do_no_harm(lab: Lab, mini: Mini, tmp_path: Path) -> None:
    drive(lab.controller(), lab.controller())
    state = state_of(lab.paths.folder)
    assert all(len(tries) == 1 for tries in state.attempts.values()), "something was done twice"
    alone = Lab(mini, tmp_path / "alone")
    lab.nodes.run = alone.paths.folder
    drive(alone.controller())
    assert outcome(alone.paths.folder) == outcome(lab.paths.folder)


def test_a_search_that_lost_its_journal_does_not_begin_anew(lab: Lab) -> None:
    drive(lab.controller(), told=1)
    shutil.rmtree(lab.paths.journal)
    with pytest.raises(DamageError, match="the journal is missing, though there are score tables"):
        lab.controller()
    assert not lab.paths.journal.exists()


# Noise twins


def test_twins_answer_the_selection_items_again_in_another_order(lab: Lab) -> None:
    controller = lab.controller()
    drive(controller)
    state = controller.state
    assert list(state.stages) == ["selection", "noise", "report"]
    slow, *others = state.stages["noise"]
    assert slow == controller.policy.parents["slow"] and 0 < len(others) <= 2
    assert set(others) <= set(state.front or ())
    first, again = (read_json(lab.paths.evaluation(name)) for name in ("selection", "noise"))
    assert again["protocol"] == first["protocol"] and again["items"] != first["items"]
    assert sorted(map(str, again["items"])) == sorted(map(str, first["items"]))
    asked = [item["item"] for item in again["items"]]
    (path,) = (lab.paths.folder / "outputs" / "noise").rglob(f"{slow}.parquet")
    assert read_table(path, OUTPUTS).column("item").to_pylist() == asked
    assert verify(lab.paths.folder) == (len(state.accepted), [])
    found = open_run(lab.paths.folder).noise()
    assert found is not None and set(found.candidates) == {slow, *others}
    assert found.flips == 0, "the engine's answers do not depend on their order"


def test_twins_may_be_left_out_and_asked_for_later(lab: Lab) -> None:
    drive(lab.controller("noise.twins=0"))
    state = state_of(lab.paths.folder)
    assert state.completed and list(state.stages) == ["selection", "report"]
    assert lab.controller("noise.twins=0").finished
    later = lab.controller("noise.twins=2")
    assert not later.finished
    drive(later)
    assert later.state.completed and later.state.looks == 1
    assert len(later.state.stages["noise"]) == 2
    assert ("noise", later.policy.parents["slow"]) in later.state.accepted
    more = lab.controller("noise.twins=3")
    assert more.finished == (len(more.state.front or ()) < 2)


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_that_is_older_than_noise_twins_goes_on_without_unless_asked(
    lab: Lab, asked: bool
) -> None:
    drive(lab.begun("noise.twins=0"), told=1)
    info = read_json(lab.paths.run_json)
    del info["config"]["noise"]
    write_json(lab.paths.run_json, info)
    lab.paths.evaluation("noise").unlink()
    drive(lab.controller(*["noise.twins=2"] * asked))
    state = state_of(lab.paths.folder)
    assert state.completed and ("noise" in state.stages) == asked
    assert state.operational["noise.twins"] == 2 * asked
    changed = [
        event["key"]
        for entry in Journal(lab.paths.journal).refresh()
        for event in entry.events
        if event["event"] == "changed"
    ]
    assert changed == ["noise.twins"] * asked
    assert (open_run(lab.paths.folder).noise() is not None) == asked


def test_a_search_that_grows_measures_its_new_front(lab: Lab) -> None:
    drive(lab.controller())
    before = state_of(lab.paths.folder)
    longer = lab.controller("search.generations=5")
    drive(longer)
    state = longer.state
    assert state.completed and list(state.stages) == ["selection", "noise", "report"]
    assert set(state.stages["noise"][1:]) <= set(state.front or ())
    for key, accepted in before.accepted.items():
        assert state.accepted[key] == accepted, "nothing is evaluated twice"


# Submitting


def test_the_intent_is_durable_before_the_submission(lab: Lab) -> None:
    seen = []

    def look(batch: str) -> None:
        state = state_of(lab.paths.folder)
        found = state.batches[batch]
        assert found.job is None and all(lab.paths.task(key).exists() for key in found.tasks)
        seen.append(len(found.live))

    lab.nodes.works, lab.nodes.on_submit = False, look
    controller = lab.begun()
    assert controller.step() and seen == [ALL]
    (batch,) = state_of(lab.paths.folder).batches.values()
    assert batch.job == "77"


def test_a_refusal_leaves_an_abandoned_batch_and_nothing_live(lab: Lab) -> None:
    lab.nodes.errors = [SubmitError("Slurm refused the job: no such partition")]
    controller = lab.begun()
    with pytest.raises(SubmitError, match="no such partition"):
        controller.step()
    state = state_of(lab.paths.folder)
    (batch,) = state.batches.values()
    assert batch.abandoned and not state.open_batches, "nobody will ever ask for it"
    assert all(t.outcome == "abandoned" for tries in state.attempts.values() for t in tries)
    drive(lab.controller(), told=1)
    assert lab.nodes.sizes() == [ALL, ALL]
    names = [call[1] for call in lab.nodes.calls if call[0] == "submit"]
    assert len(set(names)) == len(names), "a name is used once"


def test_at_a_limit_half_as_many_are_sent_and_the_last_one_waits(lab: Lab) -> None:
    lab.nodes.errors = [LimitError("QOSMaxSubmitJobPerUserLimit")] * 3
    controller = lab.begun()
    assert [controller.step() for _ in range(3)] == [True, True, False]
    assert lab.nodes.sizes() == [7, 3, 1]
    assert controller.waiting == "QOSMaxSubmitJobPerUserLimit; waiting for room"
    assert not list(state_of(lab.paths.folder).live_attempts())
    assert not controller.step() and lab.nodes.sizes() == [7, 3, 1], "it waits for a while"
    lab.passed += 15
    drive(controller, told=1)
    assert lab.nodes.sizes()[3:] == [1, 2, 4]
    assert not controller.state.penalised


def test_waiting_for_room_leaves_no_trace_at_every_look(lab: Lab) -> None:
    lab.nodes.errors = [LimitError("QOSMaxSubmitJobPerUserLimit")] * 100
    controller = lab.begun()
    before = len(Journal(lab.paths.journal).refresh())
    for _ in range(240):
        controller.step()
        lab.passed += 15
    assert controller.state.open_batches == {}
    refusals = len(lab.nodes.sizes())
    assert 10 <= refusals <= 20, "an hour at a look every 15 s"
    assert len(Journal(lab.paths.journal).refresh()) == before + 2 * refusals


def test_no_more_tasks_than_an_array_may_have(lab: Lab) -> None:
    lab.nodes.most_tasks = 3
    drive(lab.controller(), told=1)
    assert lab.nodes.sizes() == [3, 3, 1]


def test_no_more_tasks_in_the_queue_than_the_site_allows(lab: Lab) -> None:
    lab.nodes.works = False
    controller = lab.begun("site.max_jobs=5")
    tasks = [f"search-000003-{n:04d}" for n in range(5)]
    lab.nodes.states = dict.fromkeys(tasks, JobState("pending", "Priority"))
    assert [controller.step() for _ in range(3)] == [True, False, False]
    assert lab.nodes.sizes() == [5]
    worker = Worker(lab.paths.folder)
    worker.do(tasks[0])
    worker.do(tasks[3])
    worker.close()
    assert [controller.step() for _ in range(3)] == [True, True, True]
    assert lab.nodes.sizes() == [5, 2]
    assert len({a.task for a in controller.state.live_attempts()}) == 5


def test_candidates_of_a_task_are_submitted_together(lab: Lab) -> None:
    drive(lab.controller("site.candidates_per_task=4", "site.workers_per_task=2"), told=1)
    assert lab.nodes.sizes() == [2]
    task = read_json(lab.paths.task("search-000003-0000"))
    assert len(task["candidates"]) == 4 and task["workers"] == 2


def test_a_submission_that_another_controller_gave_up_meanwhile_is_cancelled(lab: Lab) -> None:
    """We were frozen between the intent and sbatch; all is another's business now."""
    lab.nodes.works = False
    lab.nodes.on_submit = lambda batch: lab.elsewhere(
        {"event": "abandoned", "batch": batch, "reason": "it was never submitted"}
    )
    controller = lab.begun()
    assert not controller.step()
    (batch,) = controller.state.batches.values()
    assert batch.job is None and batch.abandoned
    assert lab.nodes.calls[-1] == ("cancel", batch.name)


def test_a_submission_that_another_controller_adopted_meanwhile_stands(lab: Lab) -> None:
    lab.nodes.works = False
    lab.nodes.on_submit = lambda batch: lab.elsewhere(
        {"event": "submitted", "batch": batch, "job": "77"}
    )
    controller = lab.begun()
    before = len(Journal(lab.paths.journal).refresh())
    assert controller.step()
    assert len(Journal(lab.paths.journal).refresh()) == before + 2, "the intent and the adoption"
    assert [call[0] for call in lab.nodes.calls] == ["submit"]


def test_an_entry_of_another_controller_does_not_lose_the_job(lab: Lab) -> None:
    lab.nodes.works = False
    lab.nodes.on_submit = lambda batch: lab.elsewhere(
        {"event": "changed", "key": "search.failures", "old": "0.5", "new": "1"}
    )
    controller = lab.begun()
    assert controller.step()
    (batch,) = state_of(lab.paths.folder).batches.values()
    assert batch.job == "77" and [call[0] for call in lab.nodes.calls] == ["submit"]


def test_whose_intent_came_too_late_submits_nothing(lab: Lab) -> None:
    controller = lab.begun()
    refresh = controller.refresh

    def slow() -> None:
        refresh()
        lab.elsewhere({"event": "changed", "key": "k", "old": "0", "new": "1"})

    controller.refresh = slow  # type: ignore[method-assign]
    assert not controller.step() and lab.nodes.calls == []
    assert not list(state_of(lab.paths.folder).live_attempts())


def test_a_submission_during_which_the_run_was_stopped_is_cancelled(lab: Lab) -> None:
    """`l2s stop` came between the intent and the answer of sbatch, and found no job to cancel."""
    lab.nodes.works = False
    lab.nodes.on_submit = lambda batch: lab.elsewhere({"event": "stopped"})
    controller = lab.begun()
    controller.step()
    with pytest.raises(IncompleteError, match="stopped"):
        controller.step()
    (batch,) = controller.state.batches
    assert lab.nodes.calls[-1] == ("cancel", batch)


@pytest.mark.parametrize("arrived", [True, False])
def test_an_answer_that_was_lost_is_looked_up_by_name(lab: Lab, arrived: bool) -> None:
    """sbatch failed: whether the job is there is not known."""
    lab.nodes.works, lab.nodes.errors = False, [Unreachable("sbatch failed: Socket timed out")]
    controller = lab.begun()
    with pytest.raises(Unreachable):
        controller.step()
    (batch,) = controller.state.batches.values()
    if arrived:
        lab.nodes.there[batch.name] = batch.tasks
    assert controller.step()
    assert (batch.job, batch.abandoned) == (("77", False) if arrived else (None, True))
    assert lab.nodes.sizes() == [ALL]
    if not arrived:
        assert controller.step() and lab.nodes.sizes() == [ALL, ALL]


# Jobs


def test_a_job_that_lingers_is_told_to_end(lab: Lab) -> None:
    controller = lab.begun()
    controller.step()
    first = "search-000003-0000"
    lab.nodes.states[first] = JobState("running", "", "n1", "77_0")
    assert controller.step() and controller.step(), "the first table, and then the others"
    (batch,) = controller.state.open_batches
    controller.step()
    assert lab.nodes.calls[-1] == ("end", batch, ("77_0",))
    del lab.nodes.states[first]
    drive(controller)


def test_jobs_that_linger_hold_nothing_up(lab: Lab) -> None:
    controller = lab.begun()
    controller.step()
    lab.nodes.states["search-000003-0000"] = JobState("running", "", "n1", "77_0")
    drive(controller, told=1)
    assert ("end", "77_0") in {(call[0], *call[2]) for call in lab.nodes.calls if call[0] == "end"}
    with pytest.raises(AssertionError, match="does not end"):
        drive(controller)
    assert not controller.state.completed, "no job is left behind"


def test_jobs_are_told_to_end_beside_a_submission(lab: Lab) -> None:
    controller = lab.begun()
    controller.step()
    task = "search-000003-0000"
    for _ in range(20):
        lab.nodes.states[task] = JobState("running", "", "n1", "77_0")
        controller.step()
        if len(lab.nodes.sizes()) == 2:
            break
    kinds = [call[0] for call in lab.nodes.calls]
    assert kinds[-2:] == ["submit", "end"]


def test_why_tasks_wait_is_said_with_what_to_do(lab: Lab) -> None:
    lab.nodes.works = False
    lab.nodes.states = {
        f"search-000003-{n:04d}": JobState("pending", "(BadConstraints)" if n else "Priority")
        for n in range(ALL)
    }
    controller = lab.begun()
    controller.step()
    assert not controller.step()
    assert controller.waiting == (
        "6 tasks pending: (BadConstraints) (will never run: "
        "no node has what site.constraint asks for); 1 tasks pending: Priority"
    )


def test_a_stopped_run_does_nothing_until_it_is_started_again(lab: Lab) -> None:
    controller = lab.begun()
    lab.elsewhere({"event": "stopped"})
    with pytest.raises(IncompleteError, match="stopped by `l2s stop`"):
        controller.step()
    assert lab.nodes.sizes() == []
    assert lab.controller().step() and lab.nodes.sizes() == [ALL]


def test_cancelled_tasks_are_sent_again_when_asked_for(lab: Lab) -> None:
    lab.nodes.works = False
    controller = lab.begun()
    controller.step()
    cancelled = JobState("ended", "CANCELLED")
    lab.nodes.states = {task: cancelled for tasks in lab.nodes.there.values() for task in tasks}
    lab.nodes.works = True
    assert controller.step(), "it is recorded"
    with pytest.raises(IncompleteError, match="--resubmit-cancelled"):
        drive(controller)
    with pytest.raises(IncompleteError, match="--resubmit-cancelled"):
        drive(lab.controller())
    drive(lab.controller(resubmit_cancelled=True), told=1)
    attempts = state_of(lab.paths.folder).attempts.values()
    assert max(len(tries) for tries in attempts) == 2


# What nodes leave


def test_a_candidate_that_failed_on_a_node_is_sent_elsewhere(lab: Lab) -> None:
    controller = lab.begun()
    controller.step()
    attempt = next(iter(controller.state.live_attempts()))
    path = lab.attempt(attempt).receipt
    why = {"kind": "engine", "message": "out of memory", "trace": ""}
    write_json(path, read_json(path) | {"failure": why, "host": "n3", "device_seconds": 60.0})
    drive(controller, told=1)
    assert lab.nodes.calls[-1][2:] == (1, ("n3",))
    assert (attempt.kind, attempt.counted, attempt.node) == ("engine", True, "n3")
    assert attempt.seconds == 60 and controller.state.gpu_seconds >= 60


def damage(lab: Lab, paths: AttemptPaths, how: str) -> None:
    receipt = read_json(paths.receipt)
    table = bytearray(paths.scores.read_bytes())
    match how:
        case "a flipped bit":
            table[len(table) // 2] ^= 1
            paths.scores.write_bytes(table)
        case "cut short":
            paths.scores.write_bytes(table[:-7])
        case "missing":
            paths.scores.unlink()
        case "another candidate's":
            everyone = sorted(paths.folder.parents[1].iterdir())
            other = next(path for path in everyone if path != paths.folder.parent)
            paths.scores.write_bytes(next(other.glob("*/scores.parquet")).read_bytes())
        case "texts missing":
            paths.outputs.unlink()
        case "texts changed":
            paths.outputs.write_bytes(paths.outputs.read_bytes()[:-1] + b"x")
        case "of another run":
            write_json(paths.receipt, receipt | {"run": "mini-00000000"})
        case "of another protocol":
            write_json(paths.receipt, receipt | {"protocol": "0" * 16})
        case "a torn receipt":
            paths.receipt.write_text('{"run": ', encoding="utf-8")
        case "another attempt's receipt":
            write_json(paths.receipt, receipt | {"attempt": 2})


@pytest.mark.parametrize(
    "how",
    ["a flipped bit", "cut short", "missing", "another candidate's", "texts missing",
     "texts changed", "of another run", "of another protocol", "a torn receipt",
     "another attempt's receipt"],
)  # fmt: skip
def test_damage_is_put_aside_and_the_candidate_is_evaluated_again(lab: Lab, how: str) -> None:
    controller = lab.begun()
    controller.step()
    attempt = next(iter(controller.state.live_attempts()))
    damage(lab, lab.attempt(attempt), how)
    drive(controller, told=1)
    assert attempt.outcome == "failed" and attempt.kind == "damaged" and not attempt.counted
    assert not lab.attempt(attempt).folder.exists()
    assert len(list(lab.paths.quarantine.iterdir())) == 1
    assert controller.state.accepted["search", attempt.candidate].attempt == 2


# A controller that begins again


def test_waiting_goes_on_where_the_last_controller_left_it(lab: Lab) -> None:
    lab.nodes.works = False
    controller = lab.begun("site.grace_seconds=1000")
    controller.step()
    controller.step()
    assert all(a.outcome == "live" for a in controller.state.live_attempts())
    controller.beat("")
    written = read_json(lab.paths.heartbeat)
    assert len(written["since"]) == ALL
    passed = {what: since - 1000 for what, since in written["since"].items()}
    write_json(lab.paths.heartbeat, written | {"since": passed})
    assert not controller.step(), "this one has waited for a moment only"
    assert lab.controller("site.grace_seconds=1000").step()
    assert not list(state_of(lab.paths.folder).live_attempts())


def test_closing_lets_go_of_the_executor(lab: Lab) -> None:
    lab.controller().close()
    assert lab.nodes.calls == [("close",)]


def test_a_run_goes_on_with_the_device_and_the_engine_of_its_first_table(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(mini, tmp_path / "run")
    monkeypatch.setattr(start, "make_executor", lambda paths, site: lab.nodes)
    controller = lab.begun()
    assert controller.step()
    *_, device, version = controller.state.live_attempts()
    for attempt, change in (
        (device, {"device": "A100"}),
        (version, {"versions": {"scripted": "2"}}),
    ):
        path = lab.attempt(attempt).receipt
        write_json(path, read_json(path) | change)
    assert controller.step() and controller.step()
    assert (controller.state.device, controller.state.engine) == ("none", "scripted 1")
    assert (device.kind, version.kind) == ("device", "version")
    assert len(controller.state.accepted) == ALL - 2
    assert len(list((lab.paths.folder / "scores").rglob("*.parquet"))) == ALL - 2


def test_a_damaged_first_table_says_nothing_of_the_run(lab: Lab) -> None:
    controller = lab.begun()
    controller.step()
    first, *others = controller.state.live_attempts()
    receipt = lab.attempt(first).receipt
    write_json(receipt, read_json(receipt) | {"device": "A100", "file_sha256": "0" * 64})
    while controller.state.live_attempts() and any(a.outcome == "live" for a in others):
        assert controller.step()
    assert first.kind == "damaged" and controller.state.device == "none"
    assert {attempt.outcome for attempt in others} == {"accepted"}


@pytest.mark.parametrize("mixed", [False, True])
def test_a_task_tells_the_run_s_device_and_engine_once_they_are_known(
    mixed: bool, lab: Lab
) -> None:
    controller = lab.begun(f"site.allow_mixed_gpus={str(mixed).lower()}")
    controller.step()
    drive(controller, told=1)
    controller.step()  # asks
    controller.step()  # submits
    tasks = [read_json(path) for path in sorted((lab.paths.folder / "tasks").rglob("*.json"))]
    found = [(task["device"], task["engine"]) for task in tasks]
    assert found[:ALL] == [("", "")] * ALL
    assert found[ALL:] and set(found[ALL:]) == {("" if mixed else "none", "scripted 1")}
