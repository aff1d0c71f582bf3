"""What Slurm says of our jobs: one squeue query for all, and a pure function that reads it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from l2s_hpc.cluster.jobs import UNKNOWN_JOB, JobState
from l2s_hpc.errors import Unreachable

_FORMAT = "%j|%F|%K|%T|%N|%r"
_PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "SUSPENDED",
    "STAGE_OUT",
    "SIGNALING",
    "STOPPED",
}
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Row:
    """One line of squeue: a job, or one element of an array."""

    name: str
    job: str
    index: int
    state: str
    node: str
    reason: str


def query(names: Sequence[str]) -> list[Row]:
    """Ask squeue once for all jobs of these names, ended ones too while Slurm remembers them.

    Raises:
        Unreachable: squeue gave no answer.
    """
    answer = run_slurm(
        ["squeue", "--me", "-h", "-r", "-t", "all", f"--name={','.join(names)}", "-o", _FORMAT]
    )
    return [_row(line) for line in answer.splitlines() if line.count("|") >= 5]


def classify(rows: Sequence[Row]) -> JobState:
    """Judge a task from all that Slurm says of it; a live row wins over an ended one."""
    if not rows:
        return JobState("ended", UNKNOWN_JOB)
    for row in rows:
        if row.state in _RUNNING:
            return JobState("running", node=row.node)
    for row in rows:
        if row.state in _PENDING:
            return JobState("pending", row.reason)
    last = rows[-1]
    return JobState("ended", last.state, last.node)


def task_states(tasks: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> dict[str, JobState]:
    """Return the state of each task; `tasks` holds each job name's task keys by array index."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.name, row.index), []).append(row)
    return {
        task: classify(found.get((name, index), []))
        for name, keys in tasks.items()
        for index, task in enumerate(keys)
    }


def run_slurm(command: Sequence[str]) -> str:
    """Run a Slurm command and return what it printed.

    Raises:
        Unreachable: it failed, took too long, or is not on this machine.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except FileNotFoundError:
        raise Unreachable(
            f"{command[0]} is not on this machine", hint="run on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} gave no answer in {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        raise Unreachable(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _row(line: str) -> Row:
    name, job, index, state, node, reason = line.split("|", 5)
    # A job that is no array has no index: it is the first and only task.
    return Row(name, job, int(index) if index.isdigit() else 0, state, node, reason)
