"""The executor that a site names."""

from __future__ import annotations

import shutil

from l2s_hpc.cluster.jobs import Executor
from l2s_hpc.cluster.local import LocalExecutor, workers_of
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import UserError
from l2s_hpc.store.layout import RunPaths

_SLURM = ("sbatch", "squeue", "scancel", "scontrol")


def make_executor(paths: RunPaths, site: SiteConfig) -> Executor:
    """Return the executor of a site for one run."""
    if site.executor == "slurm":
        from l2s_hpc.cluster.slurm import SlurmExecutor

        return SlurmExecutor(paths, site)
    return LocalExecutor(paths, site)


def check_executor(site: SiteConfig) -> None:
    """Raise `UserError` where this machine cannot submit to the site at all."""
    missing = [name for name in _SLURM if site.executor == "slurm" and not shutil.which(name)]
    if missing:
        raise UserError(
            f"the site '{site.name}' needs Slurm, and {', '.join(missing)} is not on this machine",
            hint="run this on a login node of the cluster, or use --site local",
        )
    if site.executor == "local":
        workers_of(site)
