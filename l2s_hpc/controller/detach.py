"""`l2s run --detach`: the controller as a Slurm job, seen from both ends of its submission."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from l2s_hpc.cluster.detach import (
    ControllerJob,
    ControllerJobs,
    OwnJob,
    controller_script,
    take_own_job,
)
from l2s_hpc.config import SearchConfig, SiteConfig
from l2s_hpc.controller.chain import Chain
from l2s_hpc.controller.executors import check_executor
from l2s_hpc.controller.heartbeat import JOB_VARIABLE
from l2s_hpc.controller.notify import Notifier
from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import L2SError, UserError
from l2s_hpc.store.files import write_durably
from l2s_hpc.store.layout import RunPaths, safe_name
from l2s_hpc.store.run import read_run
from l2s_hpc.store.state import read_state


def enter_job() -> OwnJob | None:
    """Return the Slurm job that this process runs in; call it before anything is submitted."""
    own = take_own_job(os.environ)
    if own is not None:
        os.environ[JOB_VARIABLE] = own.id
    return own


def open_told(
    open_run: Callable[[], Controller], notifier: Notifier, own: OwnJob | None
) -> Controller:
    """Open a run; in a job of Slurm's nobody looks on, so the user is told where that fails."""
    try:
        return open_run()
    except L2SError as error:
        if own is not None:
            notifier.tell("paused", error.message)
        raise


def chain_of(
    folder: Path, site: SiteConfig, own: OwnJob | None, say: Callable[[str], None]
) -> Chain | None:
    """Return the chain whose link this process is; None if it is none."""
    if own is None or site.executor != "slurm":
        return None
    jobs = ControllerJobs(RunPaths(folder), read_run(folder).id, site)
    if own.name != jobs.name:
        return None
    again = f", started again ({own.restarts})" if own.restarts else ""
    say(f"job {own.id} is the controller{again}")
    return Chain(jobs, own.id, site.controller.minutes, say)


def is_stopped(folder: Path) -> bool:
    """Return whether `l2s stop` ended a run, and nobody went on with it since."""
    paths = RunPaths(folder)
    return paths.run_json.exists() and read_state(paths)[0].stopped


def check_once(site: SiteConfig) -> None:
    """Raise `UserError` where a run cannot go on by steps of a clock."""
    if site.executor != "slurm":
        raise UserError(
            f"--once needs a Slurm site: on '{site.name}' the work ends with the command",
            hint="give a Slurm site with --site, or leave --once out",
        )


def check_detach(
    config: SearchConfig, site: SiteConfig, folder: Path, arguments: Sequence[str]
) -> None:
    """Raise `UserError` where a controller of this run could not be submitted; write nothing."""
    if site.executor != "slurm":
        raise UserError(
            f"--detach submits the controller to Slurm, and the site '{site.name}' has "
            f'executor = "{site.executor}"',
            hint="give a Slurm site with --site, or keep `l2s run` alive with nohup or tmux",
        )
    check_executor(site)
    _script(RunPaths(folder), safe_name(config.name), site, arguments)


def standing_controller(folder: Path, site: SiteConfig) -> ControllerJob | None:
    """Return the controller job of a run that waits or runs already, unless the run was stopped.

    Raises:
        Unreachable: Slurm gave no answer.
    """
    paths = RunPaths(folder)
    if not paths.run_json.exists() or is_stopped(folder):
        return None
    found = ControllerJobs(paths, read_run(folder).id, site).standing()
    return next((job for job in found if job.state != "stuck"), None)


def submit_controller(controller: Controller, site: SiteConfig, arguments: Sequence[str]) -> str:
    """Write the controller's script and submit it; return the job's id.

    Args:
        controller: of the run, opened: its settings were accepted.
        site: as for the run.
        arguments: of `l2s`, as the links shall be started.

    Raises:
        SubmitError: Slurm refused it.
        Unreachable: nobody answered.
    """
    paths = controller.paths
    run = read_run(paths.folder).id
    jobs = ControllerJobs(paths, run, site)
    held = [job.id for job in jobs.standing() if job.state == "stuck"]
    if held:
        jobs.cancel(held)
    text = _script(paths, run, site, arguments)

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_durably(paths.controller_script, write)
    paths.logs.mkdir(exist_ok=True)
    job = jobs.submit()
    while not controller.record([{"event": "detached", "job": job}]):
        controller.refresh()
    return job


def _script(paths: RunPaths, run: str, site: SiteConfig, arguments: Sequence[str]) -> str:
    log = paths.controller_log.resolve()
    return controller_script(run, arguments, sys.executable, Path.cwd(), log, site)
