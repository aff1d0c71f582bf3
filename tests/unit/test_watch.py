"""What Slurm says of jobs, read by pure functions; the commands are a test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.cluster import watch
from l2s_hpc.cluster.jobs import (
    COMPLETING,
    NO_ROOM_JOB,
    STUCK_JOB,
    UNKNOWN_JOB,
    JobState,
    never_runs,
)
from l2s_hpc.cluster.watch import Row, classify, query, query_past, run_slurm, task_states
from l2s_hpc.errors import Unreachable
from tests.unit.commands import Commands, rows


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def row(state: str, reason: str = "None", node: str = "", index: int = 0) -> Row:
    return Row("b", "7", index, state, node, reason)


# One task


@pytest.mark.parametrize(
    "state", ["RUNNING", "CONFIGURING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED"],
)  # fmt: skip
def test_what_is_on_a_node_runs(state: str) -> None:
    assert classify([row(state, node="n1", index=4)]) == JobState("running", "", "n1", "7_4")


def test_what_has_ended_and_whose_node_has_not_said_so_runs() -> None:
    found = classify([row("COMPLETING", node="n1", index=4)])
    assert found == JobState("running", COMPLETING, "n1", "7_4")


@pytest.mark.parametrize(
    "state", ["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT",
              "RESV_DEL_HOLD"],
)  # fmt: skip
def test_what_waits_says_why(state: str) -> None:
    assert classify([row(state, "Priority")]) == JobState("pending", "Priority", "", "7_0")


@pytest.mark.parametrize(
    "state", ["COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY",
              "CANCELLED", "BOOT_FAIL", "DEADLINE", "REVOKED"],
)  # fmt: skip
def test_what_is_over_says_how(state: str) -> None:
    assert classify([row(state, node="n1")]) == JobState("ended", state, "n1")


def test_who_cancelled_a_job_is_left_out() -> None:
    assert classify([row("CANCELLED by 0")]).reason == "CANCELLED"


def test_what_slurm_does_not_know_has_vanished() -> None:
    assert classify([]) == JobState("ended", UNKNOWN_JOB)


@pytest.mark.parametrize("form", ["launch failed requeued held", "launch_failed_requeued_held"])
@pytest.mark.parametrize("brackets", ["{}", "({})"])
def test_a_job_that_slurm_holds_after_a_failed_launch_is_stuck(form: str, brackets: str) -> None:
    held = row("PENDING", brackets.format(form), "n1", 3)
    assert classify([held]) == JobState("stuck", STUCK_JOB, "n1", "7_3")


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin", "BeginTime", "launch failed"])
def test_other_jobs_that_wait_are_not_stuck(reason: str) -> None:
    assert classify([row("PENDING", reason)]).state == "pending"


@pytest.mark.parametrize("state", ["RESIZING", "EXPEDITING", "POWER_UP_NODE", "SOMETHING_NEW"])
def test_a_state_that_nobody_knows_is_no_end(state: str) -> None:
    found = row(state, node="n1", index=4)
    assert classify([found]) == JobState("unknown", f"Slurm calls it {state}", "n1", "7_4")
    assert found.alive, "it is cancelled with its run"
    assert classify([found, row("RUNNING")]).state == "running"
    assert classify([row("NODE_FAIL"), found]).state == "unknown"


LIVE = st.sampled_from(["PENDING", "RUNNING", "COMPLETING", "REQUEUED"])
OVER = st.sampled_from(["FAILED", "NODE_FAIL", "PREEMPTED", "CANCELLED", "COMPLETED"])


@given(st.lists(LIVE, min_size=1, max_size=3), st.lists(OVER, max_size=4), st.randoms())
def test_a_live_row_wins_over_ended_ones(alive: list[str], over: list[str], order: object) -> None:
    """A job that was submitted twice under one name, or that Slurm started again."""
    found = [row(state) for state in alive + over]
    order.shuffle(found)  # type: ignore[attr-defined]
    assert classify(found).state in ("pending", "running")


def test_of_two_ended_rows_the_last_one_counts() -> None:
    assert (
        classify([row("NODE_FAIL", node="n1"), row("COMPLETED", node="n2")]).reason == "COMPLETED"
    )


# All tasks


def test_each_task_gets_its_own_rows() -> None:
    found = [
        Row("b1", "7", 1, "RUNNING", "n1", "None"),
        Row("b2", "8", 0, "PENDING", "", "Resources"),
        Row("b1", "7", 0, "FAILED", "n2", "NonZeroExitCode"),
        Row("b9", "9", 0, "RUNNING", "n3", "None"),
    ]
    assert task_states({"b1": ["x", "y", "z"], "b2": ["u"]}, found) == {
        "x": JobState("ended", "FAILED", "n2"),
        "y": JobState("running", "", "n1", "7_1"),
        "z": JobState("ended", UNKNOWN_JOB),
        "u": JobState("pending", "Resources", "", "8_0"),
    }


# squeue


def line(
    name: str,
    job: int,
    index: object,
    state: str,
    node: str = "",
    reason: str = "None",
    rc: int = 0,
) -> str:
    """A line of squeue, with a job's exit code as the wait status that Slurm prints."""
    return "|".join(map(str, (name, job, index, state, rc << 8, node, reason))) + "|\n"


def test_all_jobs_are_asked_for_at_once(commands: Commands) -> None:
    commands.answer("squeue")
    assert query(["b1", "b2"]) == []
    (words,) = commands.calls("squeue")
    assert words[:6] == ["--me", "-h", "-r", "-t", "all", "--name=b1,b2"]


def test_a_run_of_many_submissions_can_be_watched(commands: Commands) -> None:
    ours = [f"l2s-search-0a1b2c3d-{n:06d}" for n in range(6000)]
    others = line("l2s-another-4e5f6a7b-000001", 8, 0, "RUNNING", "n1")
    commands.answer("squeue", others + line(ours[-1], 7, 0, "RUNNING", "n1"))
    assert query(ours) == [Row(ours[-1], "7", 0, "RUNNING", "n1", "None")]
    (words,) = commands.calls("squeue")
    assert "--me" in words and not any(word.startswith("--name") for word in words)


def test_lines_of_squeue(commands: Commands) -> None:
    several = "ReqNodeNotAvail, UnavailableNodes:n[1-2]|n4"
    commands.answer(
        "squeue",
        line("b1", 7, 12, "RUNNING", "n1")
        + line("b1", 7, 3, "PENDING", reason="launch failed requeued held")
        + line("b2", 8, "N/A", "FAILED", "n2", "NonZeroExitCode", rc=1)
        + line("b3", 9, 0, "PENDING", reason=several)
        + "slurm_load_jobs error: something\n",
    )
    assert query(["b1", "b2", "b3"]) == [
        Row("b1", "7", 12, "RUNNING", "n1", "None"),
        Row("b1", "7", 3, "PENDING", "", "launch failed requeued held"),
        Row("b2", "8", 0, "FAILED", "n2", "NonZeroExitCode", array=False, status=256),
        Row("b3", "9", 0, "PENDING", "", several),
    ]


def test_an_array_of_one_task_is_no_array(commands: Commands) -> None:
    commands.answer("squeue", line("b", 7, "N/A", "RUNNING", "n1"))
    (state,) = task_states({"b": ["only"]}, query(["b"])).values()
    assert state == JobState("running", "", "n1", "7"), "it is ended by its id alone"


def test_one_line_stands_for_all_elements_that_were_cancelled_before_they_began(
    commands: Commands,
) -> None:
    commands.answer("squeue", line("b", 7, 0, "RUNNING", "n1") + line("b", 7, "N/A", "CANCELLED"))
    states = task_states({"b": ["x", "y", "z"]}, query(["b"]))
    assert states["x"] == JobState("running", "", "n1", "7_0")
    assert states["y"] == states["z"] == JobState("ended", "CANCELLED")


def test_a_worker_that_found_no_room_says_so_by_its_exit_code(commands: Commands) -> None:
    full, broken = line("b", 7, 0, "FAILED", "n1", rc=75), line("b", 7, 1, "FAILED", "n1", rc=1)
    commands.answer("squeue", full + broken)
    states = task_states({"b": ["x", "y"]}, query(["b"]))
    assert states["x"] == JobState("ended", NO_ROOM_JOB, "n1")
    assert states["y"] == JobState("ended", "FAILED", "n1")


def test_what_a_refused_submission_leaves_is_no_job(commands: Commands) -> None:
    commands.answer("squeue", line("b", 7, "N/A", "FAILED", reason="BadConstraints"))
    assert query(["b"]) == []
    waits = line("b", 7, 0, "PENDING", reason="BadConstraints")
    commands.answer("squeue", waits)
    assert len(query(["b"])) == 1


# sacct


def test_the_past_is_asked_for_by_name_and_day(commands: Commands) -> None:
    commands.answer("sacct")
    assert query_past(["b1", "b2"], "2026-01-01") == []
    assert commands.calls("sacct") == [
        ["-X", "-n", "-P", "--name=b1,b2", "-S", "2026-01-01", "-o",
         "JobName,JobID,State,NodeList,ExitCode"]
    ]  # fmt: skip


def test_lines_of_sacct(commands: Commands) -> None:
    commands.answer(
        "sacct",
        rows(
            ("b1", "7_12", "CANCELLED by 1000", "None assigned", "0:0"),
            ("b1", "7_3", "NODE_FAIL", "n1", "0:0"),
            ("b1", "7_4", "FAILED", "n1", "75:0"),
            ("b1", "7_5", "FAILED", "n1", "0:9"),
            ("b1", "7_6", "FAILED", "n1", ""),
            ("b2", "8", "COMPLETED", "n2", "0:0"),
        ),
    )
    tasks = {"b1": [f"t{n}" for n in range(13)], "b2": ["u"]}
    states = task_states(tasks, query_past(["b1", "b2"], "2026-01-01"))
    assert states["t12"].reason == "CANCELLED" and states["t12"].state == "ended"
    assert states["t3"] == JobState("ended", "NODE_FAIL", "n1")
    assert states["t4"] == JobState("ended", NO_ROOM_JOB, "n1"), "as squeue would say"
    assert states["t5"] == states["t6"] == JobState("ended", "FAILED", "n1")
    assert states["u"] == JobState("ended", "COMPLETED", "n2")
    assert states["t0"] == JobState("ended", UNKNOWN_JOB)


@pytest.mark.parametrize(
    ("job", "elements"),
    [("7_[4-9%2]", {4, 5, 6, 7, 8, 9}), ("7_[1,3,5-6]", {1, 3, 5, 6}), ("7_[0-8:4]", {0, 4, 8})],
)
def test_a_range_stands_for_all_elements_without_a_line_of_their_own(
    commands: Commands, job: str, elements: set[int]
) -> None:
    """Elements that were cancelled before they began; the user's will, and not a loss."""
    others = [("b", f"7_{n}", "COMPLETED", "n1", "0:0") for n in range(10) if n not in elements]
    commands.answer("sacct", rows(*others, ("b", job, "CANCELLED by 0", "None assigned", "0:0")))
    states = task_states({"b": [str(n) for n in range(10)]}, query_past(["b"], "2026-01-01"))
    cancelled = {int(task) for task, state in states.items() if state.reason == "CANCELLED"}
    assert cancelled == elements
    assert sum(state.reason == "COMPLETED" for state in states.values()) == len(others)


# Commands that give no answer


def test_a_command_that_fails_says_nothing(commands: Commands) -> None:
    commands.answer("squeue", line("b", 7, 0, "RUNNING"), "Unable to contact controller\n", rc=1)
    with pytest.raises(Unreachable, match="squeue failed: Unable to contact controller"):
        query(["b"])


def test_a_command_that_hangs_is_given_up(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.answer("squeue")
    (commands.folder / "squeue").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    with pytest.raises(Unreachable, match=r"squeue gave no answer in 0\.1 s"):
        run_slurm(["squeue"], timeout=0.1)
    assert watch._TIMEOUT_SECONDS >= 30, "a busy controller is slow"


def test_a_command_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("squeue") is None
    with pytest.raises(Unreachable, match="squeue is not on this machine"):
        query(["b"])


# Jobs that will never run


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("BadConstraints", "site.constraint"),
        ("(BadConstraints)", "site.constraint"),
        ("PartitionTimeLimit", "site.minutes"),
        ("PartitionConfig", "site.minutes"),
        ("QOSMaxCpuPerJobLimit", "site.cpus"),
        ("DependencyNeverSatisfied", "site.sbatch"),
        ("JobHeldUser", "scontrol release"),
        ("InvalidAccount", "site.account"),
        ("job requeued in held state", "scontrol release"),
    ],
)
def test_what_to_do_about_a_job_that_never_runs(reason: str, advice: str) -> None:
    assert advice in never_runs(reason)


@pytest.mark.parametrize(
    "reason",
    ["", "None", "Priority", "(Resources)", "BeginTime", "JobArrayTaskLimit",
     "ReqNodeNotAvail, UnavailableNodes:n1", "QOSMaxJobsPerUserLimit"],
)  # fmt: skip
def test_jobs_that_only_wait(reason: str) -> None:
    assert never_runs(reason) == ""
