"""The controller as a Slurm job: its script, its jobs in the queue, and the job that we are in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from l2s_hpc.cluster.jobs import COMPLETING
from l2s_hpc.cluster.resources import minutes_of
from l2s_hpc.cluster.slurm import refusal
from l2s_hpc.cluster.watch import ask_slurm, classify, query, run_slurm
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import UserError
from l2s_hpc.store.layout import RunPaths

_KEPT = ("SLURM_CONF", "SLURM_JWT")
"""How Slurm is reached: no property of one job."""


@dataclass(frozen=True)
class OwnJob:
    """The Slurm job that this process runs in.

    Attributes:
        restarts: how often Slurm has started it again.
    """

    id: str
    name: str
    restarts: int


@dataclass(frozen=True)
class ControllerJob:
    """A controller job in the queue; `stuck`: Slurm holds it, and it will never run by itself."""

    id: str
    state: str
    where: str


def take_own_job(environ: MutableMapping[str, str]) -> OwnJob | None:
    """Return the job that this process runs in, and take its variables away.

    Otherwise they would steer the jobs that we submit: a restart count of ours would become theirs.
    What users set for sbatch themselves (`SBATCH_ACCOUNT`) stays.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return None
    restarts = environ.get("SLURM_RESTART_COUNT", "0")
    own = OwnJob(job, environ.get("SLURM_JOB_NAME", ""), int(restarts or 0))
    for name in [n for n in environ if n.startswith("SLURM") and n not in _KEPT]:
        del environ[name]
    return own


def controller_name(run: str) -> str:
    """Return the name of a run's controller jobs."""
    return f"l2s-{run}-controller"


def controller_script(
    run: str, arguments: Sequence[str], python: str, folder: Path, log: Path, site: SiteConfig
) -> str:
    """Return the sbatch script of a controller.

    Args:
        run: the id of the run.
        arguments: of `l2s`.
        python: the interpreter.
        folder: where the arguments were given.
        log: where Slurm writes, absolute.
        site: says what the job asks for.

    Raises:
        UserError: a name cannot stand in a script of Slurm's.
    """
    options = _options(run, log, site)
    # -P: a file of the user's folder must not pass for a module.
    command = [python, "-uP", "-m", "l2s_hpc.cli.main", *arguments]
    return "\n".join(
        [
            "#!/bin/sh",
            f"# The controller of the run {run}; `l2s run --detach` wrote this file.",
            "# It submits itself again before its time ends, and goes on after any interruption.",
            "# By hand: sbatch controller.sbatch",
            *(_directive(name, value) for name, value in options.items() if value is not False),
            f"cd -- {shlex.quote(str(folder))} || exit 1",
            f'exec {shlex.join(command)} "$@"',
            "",
        ]
    )


class ControllerJobs:
    """The controller jobs of one run, known by their name."""

    def __init__(self, paths: RunPaths, run: str, site: SiteConfig) -> None:
        self.name = controller_name(run)
        self._paths = paths
        self._site = site

    def standing(self) -> list[ControllerJob]:
        """Return those that are pending or run; one that is just ending does not count.

        Raises:
            Unreachable: Slurm gave no answer.
        """
        found = []
        for row in query([self.name]):
            job = classify([row])
            if job.state != "ended" and row.state != COMPLETING:
                found.append(ControllerJob(row.job, job.state, job.node or job.reason))
        return sorted(found, key=lambda job: int(job.id))

    def submit(self) -> str:
        """Submit the run's script and return the job's id.

        Raises:
            SubmitError: Slurm refused it.
            Unreachable: nobody answered; whether it was submitted is not known.
        """
        # On the command line no variable of the user's (SBATCH_JOB_NAME) can change them.
        fixed = [f"--job-name={self.name}", "--dependency=singleton"]
        script = str(self._paths.controller_script.resolve())
        done = ask_slurm(["sbatch", "--parsable", *fixed, script, "--unless-stopped"])
        if done.returncode != 0:
            raise refusal(done.stderr.strip(), self._site)
        return done.stdout.strip().partition(";")[0]

    def cancel(self, jobs: Sequence[str] = ()) -> None:
        """Cancel some of them by id, or all; a job of another name is never touched.

        Raises:
            Unreachable: Slurm gave no answer.
        """
        run_slurm(["scancel", "--me", f"--name={self.name}", *jobs])

    def seconds_left(self, job: str) -> float | None:
        """Return how long a job may still run: infinity without a limit, None if nobody says.

        Raises:
            Unreachable: Slurm gave no answer.
        """
        text = run_slurm(["squeue", "-h", "-j", job, "-o", "%L"]).strip()
        if text == "UNLIMITED":
            return float("inf")
        minutes = minutes_of(text)
        return None if minutes is None else minutes * 60


def _options(run: str, log: Path, site: SiteConfig) -> Mapping[str, str | int | bool]:
    own = site.controller
    if "\\" in str(log):
        raise UserError(
            "the run's path holds a backslash, and Slurm cannot write a log there",
            hint="name another directory with --run",
            path=log.parent.parent,
        )
    given: dict[str, str | int] = {
        "time": own.minutes,
        "mem": own.memory,
        "partition": own.partition or site.partition,
        "account": own.account or site.account,
        "qos": own.qos or site.qos,
        "mail-user": own.mail,
        "mail-type": "END,FAIL,REQUEUE" if own.mail else "",
    }
    return {
        "job-name": controller_name(run),
        "dependency": "singleton",
        # Slurm takes only one of the two.
        **({} if "no-requeue" in own.sbatch else {"requeue": True}),
        "open-mode": "append",
        "output": str(log).replace("%", "%%"),
        "ntasks": 1,
        "cpus-per-task": 1,
        **{name: value for name, value in given.items() if value},
        **own.sbatch,
    }


def _directive(name: str, value: str | int | bool) -> str:
    """Return a line for sbatch; a line end in it would begin a command of the shell."""
    if not re.fullmatch(r"[a-z][a-z-]*", name) or not str(value).isprintable():
        raise UserError(
            f"this cannot stand in a script of Slurm's: --{name}={value!r}",
            hint="see site.controller, and the name of the run directory",
        )
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
