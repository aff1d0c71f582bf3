"""What accounting says of the user, where a cluster has accounting."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from l2s_hpc.cluster.resources import minutes_of
from l2s_hpc.cluster.watch import run_slurm
from l2s_hpc.config import SiteConfig
from l2s_hpc.doctor.check import Check, failure, ok, warning
from l2s_hpc.doctor.slurm import Cluster


def account_checks(site: SiteConfig, cluster: Cluster) -> Iterator[Check]:
    """Ask accounting, where there is any, for the user's accounts and QOS.

    Raises:
        Unreachable: there is accounting and it does not answer.
    """
    if not cluster.accounting:
        yield ok("accounting", "no accounting: receipts decide")
        return
    user = getpass.getuser()
    words = ["sacctmgr", "-nP", "show", "assoc", "where", f"user={user}"]
    rows = run_slurm([*words, "format=Account,Partition,QOS,DefaultQOS"])
    yield judge_associations(site, cluster, parse_associations(rows))
    if site.qos:
        form = "format=Name,MaxWall,MaxSubmitPU,MaxJobsPU"
        rows = run_slurm(["sacctmgr", "-nP", "show", "qos", "where", f"name={site.qos}", form])
        yield judge_qos(site, rows)


@dataclass(frozen=True)
class Association:
    """An account that the user may use: where, and with which QOS."""

    account: str
    partition: str
    qos: tuple[str, ...]


def parse_associations(text: str) -> list[Association]:
    """Read `sacctmgr -nP show assoc format=Account,Partition,QOS,…`."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") >= 2]
    return [Association(row[0], row[1], tuple(q for q in row[2].split(",") if q)) for row in rows]


def judge_associations(site: SiteConfig, cluster: Cluster, found: Sequence[Association]) -> Check:
    """Judge account and QOS by what accounting knows of the user."""
    bad = failure if cluster.enforced else warning
    accounts = sorted({row.account for row in found})
    if not found:
        return bad("accounting", "it knows no account of yours", "ask for an account")
    ours = [row for row in found if site.account in ("", row.account)]
    if not ours:
        return bad(
            "accounting",
            f"you have no account '{site.account}'; yours: {', '.join(accounts)}",
            "set site.account to one of them",
        )
    partitions = {row.partition for row in ours}
    if "" not in partitions and not partitions & set(cluster.named(site.partition)):
        return bad(
            "accounting",
            f"your account is for {', '.join(sorted(partitions))} only",
            "set site.partition, or another site.account",
        )
    granted = sorted({qos for row in ours for qos in row.qos})
    if site.qos and granted and site.qos not in granted:
        return bad(
            "accounting",
            f"QOS '{site.qos}' is not among yours: {', '.join(granted)}",
            "set site.qos to one of them",
        )
    return ok("accounting", f"accounts: {', '.join(accounts)}; QOS: {', '.join(granted) or '-'}")


def judge_qos(site: SiteConfig, text: str) -> Check:
    """Judge the time limit and the number of jobs by `sacctmgr -nP show qos`."""
    lines = [line.split("|") for line in text.splitlines() if line.count("|") >= 3]
    if not lines:
        return failure("QOS limits", f"there is no QOS '{site.qos}'", "set site.qos")
    _, wall, submit, running = lines[0][:4]
    longest = minutes_of(wall) if wall else None
    if longest is not None and site.minutes > longest:
        return failure(
            "QOS limits",
            f"site.minutes = {site.minutes}, the QOS allows {wall}",
            f"set site.minutes to {int(longest)} or less",
        )
    found = f"time {wall or 'unlimited'}, jobs {submit or 'unlimited'}, running {running or 'all'}"
    if submit.isdigit() and not 0 < site.max_jobs <= int(submit):
        return warning(
            "QOS limits",
            f"{found}: each task of an array counts",
            f"set site.max_jobs to {submit} or less, else submissions are refused and tried again",
        )
    return ok("QOS limits", found)
