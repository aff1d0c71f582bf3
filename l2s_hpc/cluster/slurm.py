"""The Slurm executor: submitit submits, squeue is asked, receipts are believed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from l2s_hpc.cluster.jobs import JobState
from l2s_hpc.cluster.launch import launch
from l2s_hpc.cluster.watch import query, run_slurm, task_states
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import SubmitError, Unreachable
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import BatchState

_SIGNAL_SECONDS = 60
_OUTAGES = ("Unable to contact slurm controller", "Socket timed out", "Connection refused")


class SlurmExecutor:
    """Submits each batch as one array job whose name is the batch's."""

    def __init__(self, paths: RunPaths, site: SiteConfig) -> None:
        self._paths = paths
        self._site = site
        self._most_tasks: int | None = None

    @property
    def most_tasks(self) -> int:
        """The largest array that this cluster takes (MaxArraySize)."""
        if self._most_tasks is None:
            settings = run_slurm(["scontrol", "show", "config"])
            found = re.search(r"^MaxArraySize\s*=\s*(\d+)", settings, re.MULTILINE)
            self._most_tasks = max(int(found[1]) if found else 1001, 1)
        return self._most_tasks

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        executor = self._submitit(batch)
        runs = [str(self._paths.folder.resolve())] * len(tasks)
        try:
            jobs = executor.map_array(launch, runs, list(tasks))
        except FailedJobError as error:
            text = str(error).strip()
            if any(sign in text for sign in _OUTAGES):
                raise Unreachable(f"sbatch failed: {text}") from None
            raise SubmitError(
                f"Slurm refused the job: {text}", hint=f"see the site '{self._site.name}'"
            ) from None
        return str(jobs[0].job_id).partition("_")[0]

    def find(self, batch: BatchState) -> str | None:
        rows = query([batch.name])
        return rows[0].job if rows else None

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        tasks = {name: batch.tasks for name, batch in batches.items()}
        return task_states(tasks, query(list(tasks)))

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        run_slurm(["scancel", "--me", f"--name={batch}", *jobs])

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        for name in batches:
            run_slurm(["scancel", "--me", f"--name={name}"])

    def close(self) -> None:
        """Jobs of a cluster go on without us."""

    def preview(self, batch: str, tasks: int) -> str:
        """Return the sbatch text of a batch of this many tasks, as submitit writes it."""
        executor = self._submitit(batch, folder=Path("/tmp"))
        command = f"{shlex.quote(self._python)} -u -m submitit.core._submit LOGS"
        with_array = {"map_count": tasks} if tasks > 1 else {}
        return str(
            submitit.slurm.slurm._make_sbatch_string(
                command=f"exec {command}",
                folder=self._paths.logs / batch,
                **{**executor.parameters, **with_array},
            )
        )

    @property
    def _python(self) -> str:
        return self._site.python or sys.executable

    def _submitit(self, batch: str, folder: Path | None = None) -> Any:
        executor = submitit.SlurmExecutor(
            folder=folder or (self._paths.logs / batch).resolve(),
            python=f"exec {shlex.quote(self._python)}",
        )
        executor.update_parameters(**_parameters(self._site, batch))
        return executor


def _parameters(site: SiteConfig, batch: str) -> dict[str, Any]:
    """Return a site's settings as submitit's parameters."""
    given = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "gres": site.gres,
        "mem": site.memory,
    }
    extra = {
        "signal": f"B:USR2@{_SIGNAL_SECONDS}",
        "requeue": True,
        **{name: value for name, value in site.sbatch.items()},
    }
    return {
        **{name: value for name, value in given.items() if value},
        "job_name": batch,
        "time": site.minutes,
        "cpus_per_task": site.cpus,
        "array_parallelism": site.throttle,
        "use_srun": False,
        "wckey": "",
        "setup": [*site.setup, f"export OMP_NUM_THREADS={site.threads}"],
        "additional_parameters": extra,
    }
