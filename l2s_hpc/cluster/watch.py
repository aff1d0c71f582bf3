"""What Slurm says of our jobs: one squeue query for all, and pure functions that read it.

squeue answers without accounting, and forgets ended jobs after MinJobAge. sacct, where there is
accounting, remembers them: it is asked for vanished jobs only.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from l2s_hpc.cluster.jobs import COMPLETING, NO_ROOM_JOB, STUCK_JOB, UNKNOWN_JOB, JobState
from l2s_hpc.errors import NO_ROOM_EXIT, Unreachable

_FIELDS = ("Name", "ArrayJobID", "ArrayTaskID", "State", "exit_code", "NodeList", "Reason")
_PAST_FORMAT = "JobName,JobID,State,NodeList,ExitCode"
_PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {
    "RUNNING",
    COMPLETING,
    "CONFIGURING",
    "SUSPENDED",
    "STAGE_OUT",
    "SIGNALING",
    "STOPPED",
}
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_LONGEST_FILTER = 60_000
"""Bytes of names in one argument; Linux takes 128 KiB."""

_ALL = -1
"""In place of an index: all elements that have no line of their own."""

_STUCK = ("launch failed requeued held", "launch_failed_requeued_held")
_NO_ROOM_STATUS = NO_ROOM_EXIT << 8
"""What that exit code is in a wait status, as squeue prints it."""

_TIMEOUT_SECONDS = 60.0
_PAST_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Row:
    """One line of squeue: a job, or one element of an array.

    `array` is False for a job that is no array, and for the one line that stands for all elements
    of an array that were cancelled before they began. `status` is the wait status.
    """

    name: str
    job: str
    index: int
    state: str
    node: str
    reason: str
    array: bool = True
    status: int = 0

    @property
    def alive(self) -> bool:
        """Whether it runs, or may run."""
        return self.state.partition(" ")[0] not in _ENDED

    @property
    def id(self) -> str:
        """What scancel takes: `123_4`, or `123` where the job is no array."""
        return f"{self.job}_{self.index}" if self.array else self.job


def query(names: Sequence[str]) -> list[Row]:
    """Ask squeue once for all jobs of these names, ended ones too while Slurm remembers them.

    Raises:
        Unreachable: squeue gave no answer.
    """
    form = ",".join(f"{field}:|" for field in _FIELDS)
    joined = ",".join(names)
    named = [f"--name={joined}"] if len(joined) <= _LONGEST_FILTER else []
    answer = run_slurm(["squeue", "--me", "-h", "-r", "-t", "all", *named, "-O", form])
    rows = [_row(line) for line in answer.splitlines() if line.count("|") >= len(_FIELDS)]
    wanted = set(names)
    # What a refused sbatch leaves behind is no job.
    return [
        row
        for row in rows
        if row.name in wanted and (row.state, row.reason) != ("FAILED", "BadConstraints")
    ]


def query_past(names: Sequence[str], since: str) -> list[Row]:
    """Ask sacct once for jobs of these names that were submitted since a day (YYYY-MM-DD).

    Raises:
        Unreachable: there is no accounting, or it gave no answer.
    """
    answer = run_slurm(
        ["sacct", "-X", "-n", "-P", f"--name={','.join(names)}", "-S", since, "-o", _PAST_FORMAT],
        timeout=_PAST_TIMEOUT_SECONDS,
    )
    return [_past_row(line) for line in answer.splitlines() if line.count("|") >= 4]


def classify(rows: Sequence[Row]) -> JobState:
    """Judge a task from all that Slurm says of it; a live row wins over an ended one."""
    if not rows:
        return JobState("ended", UNKNOWN_JOB)
    for row in rows:
        if row.state in _RUNNING:
            completing = row.state if row.state == COMPLETING else ""
            return JobState("running", completing, row.node, row.id)
    for row in rows:
        if row.state in _PENDING:
            if row.reason.strip("()") in _STUCK:
                return JobState("stuck", STUCK_JOB, row.node, row.id)
            return JobState("pending", row.reason, job=row.id)
    for row in rows:
        if row.alive:
            return JobState("unknown", f"Slurm calls it {row.state}", row.node, row.id)
    last = rows[-1]
    if last.status == _NO_ROOM_STATUS:
        return JobState("ended", NO_ROOM_JOB, last.node)
    # sacct says `CANCELLED by 1000`.
    return JobState("ended", last.state.partition(" ")[0], last.node)


def task_states(tasks: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> dict[str, JobState]:
    """Return the state of each task; `tasks` holds each job name's task keys by array index."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        several = len(tasks.get(row.name, ())) > 1
        found.setdefault((row.name, row.index if row.array or not several else _ALL), []).append(
            row
        )
    return {
        task: classify(found.get((name, index)) or found.get((name, _ALL), []))
        for name, keys in tasks.items()
        for index, task in enumerate(keys)
    }


def run_slurm(command: Sequence[str], timeout: float = _TIMEOUT_SECONDS) -> str:
    """Run a Slurm command and return what it printed.

    Raises:
        Unreachable: it failed, took too long, or is not on this machine.
    """
    done = ask_slurm(command, timeout)
    if done.returncode != 0:
        raise Unreachable(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def ask_slurm(
    command: Sequence[str], timeout: float = _TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command whose refusal means something, and return what came of it.

    Raises:
        Unreachable: it took too long, or is not on this machine.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except FileNotFoundError:
        raise Unreachable(
            f"{command[0]} is not on this machine", hint="run on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} gave no answer in {timeout:g} s") from None


def _row(line: str) -> Row:
    name, job, index, state, status, node, reason = line.removesuffix("|").split("|", 6)
    # A job that is no array has no index: it is the first and only task.
    element = index.isdigit()
    wait_status = int(status) if status.isdigit() else 0
    return Row(name, job, int(index) if element else 0, state, node, reason, element, wait_status)


def _past_row(line: str) -> Row:
    name, identity, state, node, code = line.split("|", 4)
    job, _, index = identity.partition("_")
    element = index.isdigit()
    status = int(code.partition(":")[0]) << 8 if code.partition(":")[0].isdigit() else 0
    return Row(name, job, int(index) if element else 0, state, node, "", element, status)
