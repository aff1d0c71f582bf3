"""What Slurm says of a site: asked once, then judged by pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from l2s_hpc.cluster.resources import (
    Gres,
    allocation_notes,
    gres_of,
    megabytes_of,
    minutes_of,
    offers,
    wanted_gres,
)
from l2s_hpc.cluster.watch import run_slurm
from l2s_hpc.config import SiteConfig
from l2s_hpc.doctor.check import Check, failure, ok, warning

_AWAY = ("down", "drain", "fail", "unk", "error", "maint", "inval", "future")
_NODE_FORMAT = "%N|%R|%c|%m|%T|%G"
_NAME = re.compile(r"[A-Za-z0-9_.@/-]+")


@dataclass(frozen=True)
class Node:
    """A node as sinfo shows it; memory in MiB."""

    name: str
    partition: str
    cpus: int
    memory: int
    state: str
    gres: tuple[Gres, ...]

    @property
    def away(self) -> bool:
        """Whether it takes no jobs now, and nobody knows for how long."""
        return self.state.startswith(_AWAY) or self.state.endswith("*")


@dataclass(frozen=True)
class Cluster:
    """What Slurm says of itself.

    Attributes:
        settings: of `scontrol show config`.
        partitions: the fields of `scontrol show partition`, by name.
        nodes: one entry for each partition that a node is in.
    """

    version: str
    settings: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    nodes: Sequence[Node]

    @property
    def accounting(self) -> bool:
        """Whether there is a database that knows accounts and QOS."""
        return "slurmdbd" in self.settings.get("AccountingStorageType", "")

    @property
    def enforced(self) -> bool:
        """Whether a job with an unknown account is refused."""
        enforce = self.settings.get("AccountingStorageEnforce", "")
        return any(word in enforce for word in ("assoc", "limits", "qos", "safe"))

    def named(self, partition: str) -> list[str]:
        """Return the partitions that `--partition` means; the default one where it is empty."""
        if partition:
            return [name.strip() for name in partition.split(",") if name.strip()]
        return [n for n, fields in self.partitions.items() if fields.get("Default") == "YES"]


def ask_cluster() -> Cluster:
    """Ask Slurm for what it says of itself.

    Raises:
        Unreachable: it does not answer, or its commands are not here.
    """
    return Cluster(
        version=run_slurm(["sinfo", "--version"]).strip(),
        settings=parse_settings(run_slurm(["scontrol", "show", "config"])),
        partitions=parse_partitions(run_slurm(["scontrol", "show", "partition", "-o"])),
        nodes=parse_nodes(run_slurm(["sinfo", "-h", "-N", "-o", _NODE_FORMAT])),
    )


def parse_settings(text: str) -> dict[str, str]:
    """Read `scontrol show config`."""
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Read `scontrol show partition -o`: a line each, `Key=Value` between spaces."""
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.strip()]
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def parse_nodes(text: str) -> list[Node]:
    """Read sinfo's node lines; a number may carry a `+`, where nodes differ."""
    nodes = []
    for line in text.splitlines():
        if line.count("|") < 5:
            continue
        name, partition, cpus, memory, state, gres = line.split("|", 5)
        offered = () if gres == "(null)" else tuple(gres_of(gres))
        nodes.append(Node(name, partition, _number(cpus), _number(memory), state.lower(), offered))
    return nodes


def judge(site: SiteConfig, cluster: Cluster) -> Iterator[Check]:
    """Yield what fits and what does not between a site and its cluster, without asking further."""
    yield ok("Slurm", f"{cluster.version}, its controller answers")
    yield _partition_check("partition", site.partition, "site.partition", cluster)
    names = [n for n in cluster.named(site.partition) if n in cluster.partitions]
    if names:
        yield _time_check("time limit", site.minutes, "site.minutes", names, cluster)
        yield _node_check(site, names, cluster)
        yield _allowed("account", site.account, "Accounts", names, cluster)
        yield _allowed("QOS", site.qos, "Qos", names, cluster)
    yield from _controller_checks(site, cluster)
    notes = allocation_notes(site)
    if notes:
        yield warning("site", "; ".join(notes), "mend the site file")
    yield _limits(site, cluster)


def _partition_check(check: str, partition: str, key: str, cluster: Cluster) -> Check:
    known = ", ".join(sorted(cluster.partitions))
    names = cluster.named(partition)
    missing = [name for name in names if name not in cluster.partitions]
    if missing:
        return failure(
            check,
            f"no partition '{missing[0]}'; there are: {known}",
            f"set {key} to one of them (a partition may be hidden from you: ask for access)",
        )
    if not names:
        return failure(check, "the cluster has no default partition", f"set {key}, one of {known}")
    states = {name: cluster.partitions[name].get("State", "UP") for name in names}
    closed = [f"{name} is {state}" for name, state in states.items() if state != "UP"]
    if closed:
        return failure(
            check, ", ".join(closed), "wait until it is UP (`sinfo -s`), or use another one"
        )
    return ok(check, ", ".join(names) + ("" if partition else " (the default)") + ": UP")


def _time_check(
    check: str, minutes: int, key: str, names: Sequence[str], cluster: Cluster
) -> Check:
    limits = {name: cluster.partitions[name].get("MaxTime", "UNLIMITED") for name in names}
    shown = ", ".join(f"{name} allows {limit}" for name, limit in limits.items())
    found = [minutes_of(limit) for limit in limits.values()]
    longest = None if None in found else max(limit for limit in found if limit is not None)
    if longest is not None and minutes > longest:
        return failure(
            check,
            f"{key} = {minutes}, {shown}: Slurm may take the job and never run it",
            f"set {key} to {int(longest)} or less, or use another partition",
        )
    return ok(check, f"{key} = {minutes}, {shown}")


def _node_check(site: SiteConfig, names: Sequence[str], cluster: Cluster) -> Check:
    """Count the nodes of the partitions that can take a task, and those that do so now."""
    nodes = list({n.name: n for n in cluster.nodes if n.partition in names}.values())
    if not nodes:
        return failure("nodes", "the partition has no nodes", "use another one: `sinfo -s`")
    memory, wanted = megabytes_of(site.memory), wanted_gres(site)
    lacks = {
        f"{site.cpus} CPUs (site.cpus)": [n for n in nodes if n.cpus < site.cpus],
        f"{site.memory} of memory (site.memory)": [n for n in nodes if n.memory < (memory or 0)],
        **{
            f"{one.text} (site.gres)": [n for n in nodes if not offers(n.gres, one)]
            for one in wanted
        },
    }
    unfit = {node.name for short in lacks.values() for node in short}
    fit = [node for node in nodes if node.name not in unfit]
    shown = _offered(nodes)
    if not fit:
        missing = [need for need, short in lacks.items() if len(short) == len(nodes)]
        said = ", ".join(missing) or "all that is asked for at once"
        return failure("nodes", f"no node has {said}; they have {shown}", "ask for what they have")
    here = [node for node in fit if not node.away]
    found = f"{len(fit)} of {len(nodes)} nodes can take a task, {len(here)} of them are up: {shown}"
    if not here:
        return warning("nodes", found, "tasks will wait until nodes come back (`sinfo -R`)")
    return ok("nodes", found)


def _offered(nodes: Sequence[Node]) -> str:
    """Return what nodes have, each kind once."""
    kinds: dict[str, int] = {}
    for node in nodes:
        gres = ",".join(one.text for one in node.gres) or "no gres"
        kind = f"{node.cpus} CPUs, {node.memory} MB, {gres}"
        kinds[kind] = kinds.get(kind, 0) + 1
    shown = [f"{count} x ({kind})" for kind, count in kinds.items()]
    return ", ".join([*shown[:4], *(["…"] if len(shown) > 4 else [])])


def _allowed(check: str, value: str, kind: str, names: Sequence[str], cluster: Cluster) -> Check:
    """Judge an account or QOS by what the partitions let in; they do so without accounting too."""
    key = f"site.{check.lower()}"
    if value and not _NAME.fullmatch(value):
        return failure(check, f"{key} = {value!r} is no name", f"set {key} to a plain name")
    for name in names:
        allowed = cluster.partitions[name].get(f"Allow{kind}", "ALL").split(",")
        denied = cluster.partitions[name].get(f"Deny{kind}", "").split(",")
        if "ALL" not in allowed and value not in allowed:
            return failure(
                check,
                f"{name} takes only {', '.join(allowed)}, and {key} = '{value}'",
                f"set {key}, or use another partition",
            )
        if value and value in denied:
            return failure(check, f"{name} does not take '{value}'", f"set another {key}")
    return ok(check, f"{value or 'yours by default'}: let in by {', '.join(names)}")


def _controller_checks(site: SiteConfig, cluster: Cluster) -> Iterator[Check]:
    """The detached controller is a job of its own, in a partition that may differ."""
    partition = site.controller.partition or site.partition
    check = _partition_check("detached", partition, "site.controller.partition", cluster)
    names = cluster.named(partition)
    if check.result == "ok":
        check = _time_check(
            "detached", site.controller.minutes, "site.controller.minutes", names, cluster
        )
    # Only `l2s run --detach` needs it.
    if check.result == "failure":
        check = warning(check.name, f"for `l2s run --detach`: {check.found}", check.remedy)
    yield check


def _limits(site: SiteConfig, cluster: Cluster) -> Check:
    settings = cluster.settings
    most = max(_number(settings.get("MaxArraySize", "1001")), 1)
    found = f"arrays of at most {most} tasks, at most {settings.get('MaxJobCount', '?')} jobs"
    if settings.get("EnforcePartLimits", "NO") == "NO":
        found += "; Slurm takes jobs that no partition will run (EnforcePartLimits = NO)"
    if site.max_jobs:
        found += f"; of this run at most {site.max_jobs} (site.max_jobs)"
    return ok("limits", found)


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0
