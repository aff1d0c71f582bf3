"""The Slurm executor: submitit submits, squeue is asked, receipts are believed."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError

from l2s_hpc.cluster.jobs import UNKNOWN_JOB, JobState, python_command
from l2s_hpc.cluster.launch import launch
from l2s_hpc.cluster.watch import query, query_past, run_slurm, task_states
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import LimitError, SubmitError, Unreachable
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import BatchState

T = TypeVar("T")

_SIGNAL_SECONDS = 60
_OUTAGES = (
    "Unable to contact slurm",
    "Socket timed out",
    "Connection refused",
    "Slurm backup controller in standby mode",
    "Slurm temporarily unable to accept job",
)
_LIMITS = ("SubmitJob", "MaxSubmit", "GrpSubmit", "MaxJobs", "GrpJobs", "MaxJobCount", "job limit")
"""Words of refusals for the number of jobs; other limits, as of time, are refusals for good."""

_NO_SUCH_NODES = ("Requested node configuration is not available", "Invalid node name specified")
_ACCOUNTING_PAUSE = 60.0
_MOST_IDS = 500
_SBATCH_SECONDS = 180.0


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's, whose jobs start the worker by name.

    submitit's own jobs look for a pickle that is renamed after sbatch: where we die or lose the
    reply in between, they find none. Ours need nothing that is written after sbatch, and nodes
    unpickle nothing.
    """

    command = ""

    @property
    def _submitit_command_str(self) -> str:
        return self.command


class SlurmExecutor:
    """Submits each batch as one array job whose name is the batch's."""

    def __init__(self, paths: RunPaths, site: SiteConfig) -> None:
        self._paths = paths
        self._site = site
        self._settings: str | None = None
        self._past: dict[str, JobState] = {}
        self._ask_past_at = 0.0
        self._past_pause = _ACCOUNTING_PAUSE

    @property
    def most_tasks(self) -> int:
        """The largest array that this cluster takes (MaxArraySize)."""
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", self._show_config(), re.MULTILINE)
        return max(int(found[1]) if found else 1001, 1)

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        try:
            return self._submit(batch, tasks, avoid)
        except SubmitError as error:
            if not avoid or not any(sign in error.message for sign in _NO_SUCH_NODES):
                raise
        # Too few nodes are left, or one of them is no more: the lesser half may do it after all.
        return self.submit(batch, tasks, avoid[: len(avoid) // 2])

    def _submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str]) -> str:
        executor = self._submitit(batch, tasks[0].rpartition("-")[0], avoid)
        runs = [str(self._paths.folder.resolve())] * len(tasks)
        try:
            jobs = within(_SBATCH_SECONDS, lambda: executor.map_array(launch, runs, list(tasks)))
        except FailedJobError as error:
            raise refusal(str(error).strip(), self._site) from None
        except TimeoutError:
            raise Unreachable(f"sbatch gave no answer in {_SBATCH_SECONDS:g} s") from None
        return str(jobs[0].job_id).partition("_")[0]

    def find(self, batch: BatchState) -> str | None:
        rows = query([batch.name])
        return rows[0].job if rows else None

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        tasks = {name: batch.tasks for name, batch in batches.items()}
        states = task_states(tasks, query(list(tasks)))
        vanished = {
            name: batch
            for name, batch in batches.items()
            if batch.live and any(states[task] == _VANISHED for task in batch.tasks)
        }
        remembered = self._remembered(vanished) if vanished else {}
        # What squeue knows is newer, and includes what will be started again.
        return {
            task: remembered.get(task, state) if state == _VANISHED else state
            for task, state in states.items()
        }

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        # No filter, not even --me: with one, scancel ends all pending elements of the array.
        run_slurm(["scancel", *jobs])

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        rows = query(list(batches)) if batches else []
        alive = sorted({row.job for row in rows if row.alive})
        for start in range(0, len(alive), _MOST_IDS):
            run_slurm(["scancel", *alive[start : start + _MOST_IDS]])

    def close(self) -> None:
        """Jobs of a cluster go on without us."""

    def _remembered(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        """Ask accounting, where there is any, what became of jobs that squeue has forgotten.

        Only ends are taken from it: where it is slow, what it calls pending or running is old, and
        the job stays vanished, as does what it does not know.
        """
        asked = {n: b for n, b in batches.items() if not all(t in self._past for t in b.tasks)}
        if asked and time.monotonic() >= self._ask_past_at and self._has_accounting():
            # sacct means the cluster's local time: a day earlier is early enough anywhere.
            first = min(datetime.fromisoformat(batch.entry.time) for batch in asked.values())
            since = (first - timedelta(days=1)).date().isoformat()
            try:
                rows = query_past(list(asked), since)
                self._past_pause = _ACCOUNTING_PAUSE
            except Unreachable:
                rows = []
                self._past_pause = min(2 * self._past_pause, 10 * _ACCOUNTING_PAUSE)
            self._ask_past_at = time.monotonic() + self._past_pause
            tasks = {name: batch.tasks for name, batch in asked.items()}
            told = task_states(tasks, rows).items()
            self._past |= {task: job for task, job in told if _is_news(job)}
        wanted = [task for batch in batches.values() for task in batch.tasks]
        return {task: self._past[task] for task in wanted if task in self._past}

    def _has_accounting(self) -> bool:
        kind = re.search(r"^AccountingStorageType\s*=\s*(\S+)", self._show_config(), re.MULTILINE)
        return kind is not None and "slurmdbd" in kind[1]

    def _show_config(self) -> str:
        if self._settings is None:
            self._settings = run_slurm(["scontrol", "show", "config"])
        return self._settings

    def preview(self, batch: str, tasks: int) -> str:
        """Return the sbatch text of a batch of this many tasks, as submitit writes it."""
        with_array = {"map_count": tasks} if tasks > 1 else {}
        return str(
            submitit.slurm.slurm._make_sbatch_string(
                command=self._command("TASKS"),
                folder=(self._paths.logs / batch).resolve(),
                **_parameters(self._site, batch, ()),
                **with_array,
            )
        )

    def _submitit(self, batch: str, tasks: str, avoid: Sequence[str]) -> _Executor:
        executor = _Executor(folder=(self._paths.logs / batch).resolve())
        executor.update_parameters(**_parameters(self._site, batch, avoid))
        executor.command = self._command(tasks)
        return executor

    def _command(self, tasks: str) -> str:
        run = str(self._paths.folder.resolve())
        # -P: a file in the folder that the user submits from must not pass for a module.
        words = [*python_command(self._site), "-uPm", "l2s_hpc.cluster.launch", run, tasks]
        return f"exec {shlex.join(words)}"


def _is_news(job: JobState) -> bool:
    return job.state == "ended" and job.reason not in ("", UNKNOWN_JOB)


_VANISHED = JobState("ended", UNKNOWN_JOB)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise `TimeoutError` and leave it to itself.

    submitit gives its sbatch no time limit. Where it gets through later, its job is found by name.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except (FailedJobError, OSError, RuntimeError, ValueError) as error:
            answer.set_exception(error)
        finally:
            if not answer.done():  # the thread's traceback says what it was
                answer.set_exception(RuntimeError("submitit failed"))

    threading.Thread(target=work, daemon=True).start()
    return answer.result(seconds)


def refusal(text: str, site: SiteConfig) -> SubmitError | Unreachable:
    """Return what a failed sbatch means, from the text that it printed."""
    if any(sign in text for sign in _OUTAGES):
        return Unreachable(f"sbatch failed: {text}")
    if any(sign in text for sign in _LIMITS):
        return LimitError(f"Slurm takes no more jobs: {text}")
    return SubmitError(f"Slurm refused the job: {text}", hint=f"see the site '{site.name}'")


def _parameters(site: SiteConfig, batch: str, avoid: Sequence[str]) -> dict[str, Any]:
    """Return a site's settings as submitit's parameters."""
    given = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "gres": site.gres,
        "mem": site.memory,
    }
    own = str(site.sbatch.get("exclude", ""))
    excluded = ",".join(filter(None, [own, *avoid]))
    # Slurm takes only one of the two.
    again = {} if "no-requeue" in site.sbatch else {"requeue": True}
    extra = {
        "signal": f"B:USR2@{min(_SIGNAL_SECONDS, 15 * site.minutes)}",
        **again,
        **site.sbatch,
        **({"exclude": excluded} if excluded else {}),
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
