"""The Slurm executor; sbatch, squeue, sacct, scancel and scontrol are a test's own."""

from __future__ import annotations

import os
import runpy
import shlex
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.cluster.jobs import UNKNOWN_JOB, JobState, python_command
from l2s_hpc.cluster.slurm import SlurmExecutor
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import LimitError, SubmitError, Unreachable
from l2s_hpc.store.journal import Entry
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import AttemptState, BatchState
from tests.unit.commands import Commands, rows

SETTINGS = "MaxArraySize            = {}\nAccountingStorageType   = accounting_storage/{}\n"


class Slurm:
    """Commands of a cluster, and executors that call them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands = Commands(folder / "bin", monkeypatch)
        self.paths = RunPaths(folder / "run")
        for name in ("squeue", "sacct", "scancel", "srun"):
            self.commands.answer(name)
        self.commands.answer("sbatch", "Submitted batch job 77\n")
        self.settings()

    def settings(self, array: int = 1001, accounting: str = "slurmdbd") -> None:
        self.commands.answer("scontrol", SETTINGS.format(array, accounting))

    def squeue(self, *lines: tuple[str, object, str, str]) -> None:
        """Let squeue know these elements: name, index, state and reason."""
        text = "".join(f"{n}|77|{i}|{state}|0|n1|{why}|\n" for n, i, state, why in lines)
        self.commands.answer("squeue", text)

    def executor(self, **site: Any) -> SlurmExecutor:
        settings = {"name": "s", "executor": "slurm", **site}
        return SlurmExecutor(self.paths, SiteConfig.model_validate(settings))

    def kept(self, batch: str) -> str:
        """What sbatch was given for a batch, as it stands in its logs."""
        return (self.paths.logs / batch / "77_submission.sh").read_text(encoding="utf-8")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path, monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def batch(name: str, *tasks: str, written: str = "2026-01-05T12:00:00.000+00:00") -> BatchState:
    """A batch of which every task has a live attempt."""
    live = [AttemptState("search", 0, f"of-{task}", 1, name, task) for task in tasks]
    return BatchState(name, tasks, Entry(1, written, "h", 1, "1", ()), job="77", live=live)


def flags(script: str) -> dict[str, str]:
    """The flags of an sbatch text."""
    found = [line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line]
    return {name: value for name, _, value in (flag.partition("=") for flag in found)}


def command(script: str) -> str:
    """The line of an sbatch text that becomes the worker."""
    (found,) = [line for line in script.splitlines() if line.startswith("exec ")]
    return found


# Submitting


TASKS = ["search-000003-0000", "search-000003-0001", "search-000003-0002"]


def test_several_tasks_are_an_array_under_the_batchs_name(slurm: Slurm) -> None:
    assert slurm.executor(throttle=2).submit("b1", TASKS) == "77"
    found = flags(slurm.kept("b1"))
    assert found["job-name"] == "b1" and found["array"] == "0-2%2"
    assert len(slurm.commands.calls("sbatch")) == 1


def test_one_task_is_no_array(slurm: Slurm) -> None:
    assert slurm.executor().submit("b1", TASKS[:1]) == "77"
    assert "array" not in flags(slurm.kept("b1"))


@pytest.mark.parametrize(("index", "task"), [("2", TASKS[2]), ("", TASKS[0])])
def test_a_job_becomes_the_worker_of_its_task(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, index: str, task: str
) -> None:
    """An element of the array knows its index; a job that is no array has the only task."""
    slurm.executor().submit("b1", TASKS)
    words = shlex.split(command(slurm.kept("b1")))
    assert words[-3:] == [
        "l2s_hpc.cluster.launch",
        str(slurm.paths.folder.resolve()),
        TASKS[0][:-5],
    ]
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append(arguments))
    monkeypatch.setattr(sys, "argv", words[-3:])
    monkeypatch.delitem(sys.modules, "l2s_hpc.cluster.launch")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
    runpy.run_module("l2s_hpc.cluster.launch", run_name="__main__")
    assert became[0][-3:] == ["l2s_hpc.task.worker", str(slurm.paths.folder.resolve()), task]


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: slurm_receive_msg: Connection refused",
        "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    ],
)
def test_an_outage_says_nothing_of_the_job(slurm: Slurm, text: str) -> None:
    slurm.commands.answer("sbatch", err=text, rc=1)
    with pytest.raises(Unreachable, match="sbatch failed"):
        slurm.executor().submit("b1", ["x", "y"])


@pytest.mark.parametrize(
    "word",
    ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit",
     "QOSMaxJobsPerUserLimit", "AssocGrpJobsLimit"],
)  # fmt: skip
def test_a_limit_on_the_number_of_jobs_can_be_waited_for(slurm: Slurm, word: str) -> None:
    text = (
        f"sbatch: error: {word}\nsbatch: error: Batch job submission failed: Job violates "
        "accounting/QOS policy (job submit limit, user's size and/or time limits)"
    )
    slurm.commands.answer("sbatch", err=text, rc=1)
    with pytest.raises(LimitError, match=word):
        slurm.executor().submit("b1", ["x", "y"])


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: invalid partition specified: nonsense",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition "
        "combination specified",
        "sbatch: error: Batch job submission failed: Invalid job array specification",
        "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: "
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: error: QOSMaxGRESPerUser\nsbatch: error: Batch job submission failed: Job "
        "violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    ],
)
def test_other_refusals_are_told_in_slurms_words(slurm: Slurm, text: str) -> None:
    slurm.commands.answer("sbatch", err=text, rc=1)
    with pytest.raises(SubmitError) as error:
        slurm.executor().submit("b1", ["x", "y"])
    assert not isinstance(error.value, LimitError)
    assert text.splitlines()[-1] in error.value.message and "the site 's'" in error.value.hint


def test_the_largest_array_is_the_clusters(slurm: Slurm) -> None:
    slurm.settings(array=20)
    executor = slurm.executor()
    assert [executor.most_tasks for _ in range(5)] == [20] * 5
    assert len(slurm.commands.calls("scontrol")) == 1, "it is asked once"


# Nodes to be avoided


def test_nodes_are_avoided_besides_those_of_the_site(slurm: Slurm) -> None:
    executor = slurm.executor(sbatch={"exclude": "n[7-9]"})
    executor.submit("b1", ["x"], avoid=("n1", "n2"))
    executor.submit("b2", ["x"])
    excluded = [flags(slurm.kept(name))["exclude"] for name in ("b1", "b2")]
    assert excluded == ["'n[7-9],n1,n2'", "'n[7-9]'"]


@pytest.mark.parametrize(
    "refusal",
    ["Requested node configuration is not available", "Invalid node name specified"],
)
def test_where_no_other_node_is_left_any_node_is_taken(slurm: Slurm, refusal: str) -> None:
    slurm.commands.answer("sbatch", err=f"Batch job submission failed: {refusal}", rc=1)
    executor = slurm.executor()
    with pytest.raises(SubmitError):
        executor.submit("b1", ["x"], avoid=("n1",))
    sent = slurm.commands.calls("sbatch")
    assert len(sent) == 2
    excluded = ["exclude" in flags(Path(s[-1]).read_text(encoding="utf-8")) for s in sent]
    assert excluded == [True, False]
    with pytest.raises(SubmitError):
        executor.submit("b2", ["x"])
    assert len(slurm.commands.calls("sbatch")) == 3, "nothing was avoided, nothing is tried again"


def test_as_many_nodes_are_avoided_as_leave_enough_the_worst_first(slurm: Slurm) -> None:
    """The task may need a kind of node of which only two are bad."""
    script = (slurm.commands.folder / "sbatch").read_text(encoding="utf-8")
    said = "Batch job submission failed: Requested node configuration is not available"
    refuse = f'for last; do :; done; grep -q "n[345]" "$last" && {{ echo "{said}" >&2; exit 1; }}\n'
    lines = script.replace('cat "$here', f'{refuse}cat "$here', 1)
    (slurm.commands.folder / "sbatch").write_text(lines, encoding="utf-8")
    assert slurm.executor().submit("b1", ["x"], avoid=("n9", "n1", "n3", "n4", "n5")) == "77"
    sent = len(slurm.commands.calls("sbatch"))
    assert (sent, flags(slurm.kept("b1"))["exclude"]) == (2, "n9,n1")


def test_another_refusal_is_not_tried_again(slurm: Slurm) -> None:
    slurm.commands.answer("sbatch", err="invalid partition specified: x", rc=1)
    with pytest.raises(SubmitError):
        slurm.executor().submit("b1", ["x"], avoid=("n1",))
    assert len(slurm.commands.calls("sbatch")) == 1


# The sbatch text


def test_what_a_site_says_stands_in_the_script(slurm: Slurm) -> None:
    site = {
        "partition": "gpu", "account": "me", "qos": "long", "constraint": "a100", "gres": "gpu:1",
        "memory": "64G", "minutes": 90, "cpus": 8, "threads": 4, "throttle": 5,
        "setup": ("module load cuda", "ulimit -c 0"),
        "sbatch": {"nice": 10, "exclusive": True, "comment": "two words; $HOME"},
    }  # fmt: skip
    text = slurm.executor(**site).preview("b1", 20)
    expected = {
        "partition": "gpu", "account": "me", "qos": "long", "constraint": "a100", "gres": "gpu:1",
        "mem": "64G", "time": "90", "cpus-per-task": "8", "array": "0-19%5", "job-name": "b1",
        "nice": "10", "exclusive": "", "comment": "'two words; $HOME'", "requeue": "",
        "signal": "B:USR2@60", "open-mode": "append",
    }  # fmt: skip
    found = flags(text)
    assert {name: found[name] for name in expected} == expected
    lines = text.splitlines()
    setup = [lines.index(line) for line in (*site["setup"], "export OMP_NUM_THREADS=4")]  # type: ignore[misc]
    assert setup == sorted(setup)


def test_what_a_site_does_not_say_is_left_to_slurm(slurm: Slurm) -> None:
    found = flags(slurm.executor().preview("b1", 1))
    assert not found.keys() & {"partition", "account", "qos", "constraint", "gres", "mem", "array"}
    assert "exclude" not in found


def test_a_site_may_refuse_to_be_requeued(slurm: Slurm) -> None:
    found = flags(slurm.executor(sbatch={"no-requeue": True}).preview("b1", 1))
    assert "no-requeue" in found and "requeue" not in found


def test_a_sites_own_flags_win(slurm: Slurm) -> None:
    found = flags(slurm.executor(sbatch={"signal": "B:USR2@300"}).preview("b1", 1))
    assert found["signal"] == "B:USR2@300"


def test_a_short_task_is_warned_late_enough_to_do_something(slurm: Slurm) -> None:
    assert flags(slurm.executor(minutes=1).preview("b1", 1))["signal"] == "B:USR2@15"


@pytest.mark.parametrize(
    "words",
    [
        ["/shared/venv/bin/python"],
        ["apptainer", "exec", "--nv", "l2s.sif", "python"],
        ["/with space/python"],
        ["/bin/python;reboot"],
    ],
    ids=" ".join,
)
def test_the_interpreter_may_be_several_words_and_never_a_shells(
    slurm: Slurm, words: list[str]
) -> None:
    line = command(slurm.executor(python=shlex.join(words)).preview("b1", 3))
    assert shlex.split(line)[: len(words) + 1] == ["exec", *words]
    assert all(shlex.quote(word) in line for word in words)


def test_without_an_interpreter_ours_is_taken() -> None:
    (word,) = python_command(SiteConfig(name="s", executor="slurm"))
    assert Path(word).exists()


# Ending jobs


def test_single_jobs_are_ended_by_their_ids(slurm: Slurm) -> None:
    slurm.executor().end("b1", ("77_3", "77_5"))
    assert slurm.commands.calls("scancel") == [["77_3", "77_5"]]


def test_only_jobs_of_these_names_that_live_are_cancelled(slurm: Slurm) -> None:
    slurm.commands.answer(
        "squeue",
        "b1|77|0|RUNNING|0|n1|None|\nb1|77|1|PENDING|0||Priority|\nb2|80|N/A|COMPLETED|0|n1|None|\n",
    )
    slurm.executor().cancel({"b1": batch("b1"), "b2": batch("b2")})
    assert "--name=b1,b2" in slurm.commands.calls("squeue")[0]
    assert slurm.commands.calls("scancel") == [["77"]]


def test_nothing_is_cancelled_where_nothing_is_under_way(slurm: Slurm) -> None:
    executor = slurm.executor()
    executor.cancel({})
    executor.cancel({"b1": batch("b1")})
    assert slurm.commands.calls("scancel") == []


def test_a_job_is_found_by_its_name(slurm: Slurm) -> None:
    assert slurm.executor().find(batch("b1", "x", "y")) is None
    slurm.squeue(("b1", 1, "PENDING", "None"))
    assert slurm.executor().find(batch("b1", "x", "y")) == "77"


# Watching


def test_accounting_is_not_asked_while_squeue_knows_all(slurm: Slurm) -> None:
    slurm.squeue(("b1", 0, "RUNNING", "None"), ("b1", 1, "FAILED", "None"))
    states = slurm.executor().watch({"b1": batch("b1", "x", "y")})
    assert [state.state for state in states.values()] == ["running", "ended"]
    assert slurm.commands.calls("sacct") == []


def test_accounting_is_asked_for_batches_with_vanished_jobs_only(slurm: Slurm) -> None:
    slurm.squeue(("b1", 0, "RUNNING", "None"))
    slurm.commands.answer("sacct", rows(("b2", 78, "CANCELLED by 0", "n1", "0:15")))
    states = slurm.executor().watch({"b1": batch("b1", "x"), "b2": batch("b2", "y")})
    assert states["y"] == JobState("ended", "CANCELLED", "n1")
    (words,) = slurm.commands.calls("sacct")
    assert "--name=b2" in words


def test_accounting_is_not_asked_for_batches_that_are_settled(slurm: Slurm) -> None:
    settled = batch("b1", "x")
    settled.live.clear()
    slurm.executor().watch({"b1": settled})
    assert slurm.commands.calls("sacct") == []


def test_where_there_is_no_accounting_it_is_never_asked(slurm: Slurm) -> None:
    slurm.settings(accounting="none")
    executor = slurm.executor()
    for _ in range(3):
        states = executor.watch({"b1": batch("b1", "x")})
        assert states == {"x": JobState("ended", UNKNOWN_JOB)}
    assert slurm.commands.calls("sacct") == []
    assert len(slurm.commands.calls("scontrol")) == 1


def test_accounting_is_asked_once_for_what_it_knows(slurm: Slurm, clock: list[float]) -> None:
    slurm.commands.answer(
        "sacct", rows(("b1", "77_0", "FAILED", "n1", "1:0"), ("b1", "77_1", "TIMEOUT", "n2", "0:0"))
    )
    executor, of = slurm.executor(), {"b1": batch("b1", "x", "y")}
    for _ in range(3):
        assert [s.reason for s in executor.watch(of).values()] == ["FAILED", "TIMEOUT"]
        clock[0] += 1000
    assert len(slurm.commands.calls("sacct")) == 1


def test_accounting_that_is_late_is_asked_once_a_minute(slurm: Slurm, clock: list[float]) -> None:
    executor, of = slurm.executor(), {"b1": batch("b1", "x")}
    for _ in range(10):
        assert executor.watch(of)["x"].reason == UNKNOWN_JOB
        clock[0] += 15
    assert len(slurm.commands.calls("sacct")) == 3
    slurm.commands.answer("sacct", rows(("b1", 77, "TIMEOUT", "n2", "0:0")))
    clock[0] += 60
    assert executor.watch(of)["x"] == JobState("ended", "TIMEOUT", "n2")


def test_accounting_that_is_down_is_asked_less_and_less(slurm: Slurm, clock: list[float]) -> None:
    slurm.commands.answer("sacct", err="sacct: error: Connection refused", rc=1)
    executor, of, times = slurm.executor(), {"b1": batch("b1", "x")}, []
    for _ in range(150):
        before = len(slurm.commands.calls("sacct"))
        assert executor.watch(of)["x"].reason == UNKNOWN_JOB, "it is no answer, and no failure"
        if len(slurm.commands.calls("sacct")) > before:
            times.append(clock[0])
        clock[0] += 20
    pauses = [b - a for a, b in pairwise(times)]
    assert pauses == [120, 240, 480, 600, 600, 600][: len(pauses)] and len(pauses) >= 5


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SOMETHING_NEW"])
def test_accounting_is_not_believed_that_a_vanished_job_lives(
    slurm: Slurm, clock: list[float], state: str
) -> None:
    slurm.commands.answer("sacct", rows(("b1", 77, state, "n1", "0:0")))
    executor, of = slurm.executor(), {"b1": batch("b1", "x")}
    assert executor.watch(of)["x"] == JobState("ended", UNKNOWN_JOB)
    slurm.commands.answer("sacct", rows(("b1", 77, "FAILED", "n1", "1:0")))
    clock[0] += 61
    assert executor.watch(of)["x"] == JobState("ended", "FAILED", "n1"), "and it is asked again"


@pytest.mark.parametrize("past", ["NODE_FAIL", "PREEMPTED", "FAILED"])
def test_squeue_is_believed_before_accounting(slurm: Slurm, past: str) -> None:
    slurm.squeue(("b1", 1, "PENDING", "BeginTime"))
    slurm.commands.answer(
        "sacct",
        rows(("b1", "77_0", "COMPLETED", "n1", "0:0"), ("b1", "77_1", past, "n2", "0:0")),
    )
    states = slurm.executor().watch({"b1": batch("b1", "x", "y")})
    assert states["x"].reason == "COMPLETED"
    assert states["y"] == JobState("pending", "BeginTime", "", "77_1")


def test_the_day_for_accounting_is_that_of_the_cluster(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "WEST8")
    time.tzset()
    try:
        late = batch("b1", "x", written="2026-01-06T02:00:00.000+00:00")
        slurm.executor().watch({"b1": late})
    finally:
        monkeypatch.undo()
        time.tzset()
    (words,) = slurm.commands.calls("sacct")
    assert words[words.index("-S") + 1] <= "2026-01-05T18:00:00"


def test_a_squeue_that_fails_is_no_answer(slurm: Slurm) -> None:
    slurm.commands.answer("squeue", err="Unable to contact slurm controller", rc=1)
    with pytest.raises(Unreachable):
        slurm.executor().watch({"b1": batch("b1", "x")})
    assert slurm.commands.calls("sacct") == [], "accounting alone decides nothing"
