"""`l2s stop`: ends a run from outside."""

from __future__ import annotations

import time
from pathlib import Path

from l2s_hpc.cluster.detach import ControllerJobs
from l2s_hpc.cluster.jobs import COMPLETING
from l2s_hpc.config import SiteConfig, validate
from l2s_hpc.controller.executors import make_executor
from l2s_hpc.errors import IncompleteError, Unreachable
from l2s_hpc.store.journal import Event
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import read_run
from l2s_hpc.store.state import RunState, read_state

_MOST_LOOKS = 10
_LOOK_SECONDS = 1.0


def stop(folder: Path) -> int:
    """Ask the run's controller to end, and cancel this run's jobs and no others.

    `l2s run` with the same settings goes on later.

    Returns:
        The number of submissions that were under way.

    Raises:
        IncompleteError: Slurm gives no answer; what was recorded stands.
    """
    paths = RunPaths(folder)
    info = read_run(folder)
    state, journal = read_state(paths)
    site = validate(SiteConfig, state.site or info.site)
    while not journal.append(_stop_events(state, site)):
        for entry in journal.refresh():
            state.apply(entry)
    if site.executor == "slurm":
        try:
            _cancel(paths, info.id, site)
        except Unreachable as error:
            raise IncompleteError(
                f"the run is asked to stop, but its jobs could not be cancelled: {error.message}",
                hint="give the same command again when Slurm answers",
                path=folder,
            ) from None
    return len(_live(state))


def _cancel(paths: RunPaths, run: str, site: SiteConfig) -> None:
    """Cancel controllers and tasks until none is seen: a controller may be in its last sbatch."""
    controllers, executor = ControllerJobs(paths, run, site), make_executor(paths, site)
    for _ in range(_MOST_LOOKS):
        # The controllers first: they would wait for jobs that are being cancelled.
        controllers.cancel()
        state, _ = read_state(paths)
        executor.cancel(state.batches)
        jobs = executor.watch(state.batches).values() if state.batches else ()
        alive = [job for job in jobs if job.job and job.reason != COMPLETING]
        if not alive and not controllers.standing():
            return
        time.sleep(_LOOK_SECONDS)


def _stop_events(state: RunState, site: SiteConfig) -> list[Event]:
    """Return the events of a stop.

    Local workers end with their controller. It may have run on a machine that is gone, so their
    batches are given up here: nobody would ever learn what became of them.
    """
    given_up = _live(state) if site.executor == "local" else ()
    return [
        {"event": "stopped"},
        *({"event": "abandoned", "batch": name, "reason": "`l2s stop`"} for name in given_up),
    ]


def _live(state: RunState) -> list[str]:
    return [name for name, batch in state.open_batches.items() if batch.live]
