"""What the controller asks of an executor, and what an executor can say of a task."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from l2s_hpc.config import SiteConfig
from l2s_hpc.store.state import BatchState

UNKNOWN_JOB = "Slurm no longer knows its job"
"""The reason of a job that is over because it has vanished."""

COMPLETING = "COMPLETING"
"""The reason of a running job that has ended, and whose node has not said so yet."""

NO_ROOM_JOB = "no room on the disk for a receipt"
"""The reason of a job whose worker could write nothing."""

STUCK_JOB = "Slurm holds it after a failed launch"
"""The reason of a job that is over because it will never run by itself."""


def python_command(site: SiteConfig) -> list[str]:
    """Return the words that start Python on a node of a site."""
    return shlex.split(site.python) or [sys.executable]


_NEVER = {
    "BadConstraints": "no node has what site.constraint asks for",
    "PartitionTimeLimit": "site.minutes is above the partition's limit",
    "PartitionNodeLimit": "the partition does not give so many nodes",
    "PartitionConfig": "it asks for more than the partition gives: see site.minutes and site.cpus",
    "AccountNotAllowed": "the partition does not take site.account",
    "QOSNotAllowed": "the partition does not take site.qos",
    "InvalidAccount": "see site.account",
    "InvalidQOS": "see site.qos",
    "QOSMaxWallDurationPerJobLimit": "site.minutes is above the QOS's limit",
    "AssocMaxWallDurationPerJobLimit": "site.minutes is above the account's limit",
    "QOSMaxCpuPerJobLimit": "site.cpus is above the QOS's limit",
    "QOSMaxGRESPerJob": "site.gres is above the QOS's limit",
    "DependencyNeverSatisfied": "see site.sbatch",
    "JobHeldUser": "somebody holds it: scontrol release",
    "job requeued in held state": "somebody holds it: scontrol release",
    "JobHeldAdmin": "the administrators hold it: ask them",
}


def never_runs(reason: str) -> str:
    """Return what to do about a pending job that Slurm will never start; empty if it only waits."""
    text = reason.strip("()").partition(",")[0]
    return _NEVER.get(text, _NEVER.get(text.partition(" ")[0], ""))


@dataclass(frozen=True)
class JobState:
    """What is known of one task's job.

    `ended`: over, whatever came of it; `orphaned`: its controller died with it, nobody's fault;
    `stuck`: Slurm holds it after a failed launch, and it will never run by itself;
    `unknown`: nobody can say, which is neither done nor failed.

    Attributes:
        reason: of a pending or unknown one, why it does not run; of an ended one, Slurm's state.
        job: the id to end it by, such as `123_4`; empty where there is nothing to end.
    """

    state: Literal["pending", "running", "ended", "orphaned", "stuck", "unknown"]
    reason: str = ""
    node: str = ""
    job: str = ""


class Executor(Protocol):
    """Takes batches of tasks. What comes of them is read from receipts, not from here."""

    @property
    def most_tasks(self) -> int:
        """The most tasks that one batch may have."""

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        """Submit tasks under a unique name and return a reference to the job.

        Args:
            batch: the name.
            tasks: their keys, in the order of the array's indices.
            avoid: nodes that these tasks shall not run on, where there are others; the worst first.

        Raises:
            SubmitError: it was refused and nothing was submitted.
            LimitError: a limit on the number of jobs was reached, and nothing was submitted.
            Unreachable: nobody answered; whether it was submitted is not known.
        """

    def find(self, batch: BatchState) -> str | None:
        """Return the job that stands under a batch's name after a crash, or None."""

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        """Return the state of every task of these batches, with one query for all."""

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        """End single jobs of a batch by the ids that `watch` gave."""

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        """End the jobs of these batches and of no others."""

    def close(self) -> None:
        """Let go; jobs of a cluster go on, workers of this machine end."""
