"""All checks in the order in which one leads to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from l2s_hpc.config import SearchConfig, SiteConfig
from l2s_hpc.doctor.accounts import account_checks
from l2s_hpc.doctor.check import Check, failure, guarded, ok, warning
from l2s_hpc.doctor.place import existing, folder_checks, job_check, packages_check
from l2s_hpc.doctor.probe import probe_checks
from l2s_hpc.doctor.script import test_only_check
from l2s_hpc.doctor.slurm import Cluster, ask_cluster, judge
from l2s_hpc.errors import Unreachable


def examine(
    config: SearchConfig | None,
    site: SiteConfig,
    folder: Path,
    probe: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Check]:
    """Yield the checks of a site, and of a job on it, one by one as they are done.

    Args:
        config: the job, or None to check the site alone.
        site: the site.
        folder: where runs are to be kept.
        probe: send a small job too, and wait so many seconds for it.
        say: told what is waited for.
    """
    yield from folder_checks(folder)
    if probe is None or site.executor == "local":
        yield packages_check(site)
    if config is not None:
        yield job_check(config, site)
    if site.executor == "slurm":
        yield from _slurm_checks(site, existing(folder), probe, say)
    elif probe is not None:
        yield ok("probe job", "none is needed: the site is this machine")


def _slurm_checks(
    site: SiteConfig, place: Path, probe: float | None, say: Callable[[str], None]
) -> Iterator[Check]:
    try:
        cluster = ask_cluster()
    except Unreachable as error:
        remedy = error.hint or "try again later; `scontrol ping` says whether it answers"
        yield failure("Slurm", error.message, remedy)
        return
    failed = False
    for check in _asked(site, cluster, place):
        failed = failed or check.result == "failure"
        yield check
    if probe is not None and failed:
        yield warning("probe job", "not sent: see the failures above", "mend them first")
    elif probe is not None:
        yield from probe_checks(site, place, probe, say)


def _asked(site: SiteConfig, cluster: Cluster, place: Path) -> Iterator[Check]:
    yield from judge(site, cluster)
    try:
        yield from account_checks(site, cluster)
    except Unreachable as error:
        yield warning(
            "accounting", error.message, "nothing is lost by it: receipts decide, not accounting"
        )
    yield guarded("sbatch", lambda: test_only_check(site, place), "see the site's flags")
