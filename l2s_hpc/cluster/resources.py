"""What a site asks Slurm for, in numbers: times, memory, GPUs. Pure text and arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from l2s_hpc.config import SiteConfig

_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
_GPU_FLAGS = ("gpus", "gpus-per-node", "gpus-per-task")


@dataclass(frozen=True)
class Gres:
    """A generic resource: `gpu:a100:4` is kind `gpu`, type `a100`, count 4; any type is empty."""

    kind: str
    type: str
    count: int

    @property
    def text(self) -> str:
        """As `--gres` and sinfo write it."""
        return ":".join([self.kind, *([self.type] if self.type else []), str(self.count)])


def minutes_of(limit: str) -> float | None:
    """Return a Slurm time limit (`2-00:00:00`, `30:00`, `UNLIMITED`) in minutes; None: no limit."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, parts[0], (*parts, 0)[1]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60


def megabytes_of(memory: str) -> float | None:
    """Return `--mem` in MiB, as Slurm counts it; None for nothing said, or for all there is (0)."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", memory.strip().upper())
    if not match or not int(match[1]):
        return None
    return int(match[1]) * _UNITS[match[2] or "M"]


def gres_of(text: str) -> list[Gres]:
    """Return what `--gres` or sinfo's column names: `gpu:a100:4(S:0-1),lustre:1`."""
    found = []
    for part in re.sub(r"\([^)]*\)", "", text).removeprefix("gres:").split(","):
        kind, *rest = [word for word in re.split("[:=]", part.strip()) if word] or [""]
        if not kind:
            continue
        count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
        found.append(Gres(kind, rest[0] if rest else "", count))
    return found


def offers(available: Iterable[Gres], wanted: Gres) -> bool:
    """Return whether a node with these resources can give a wanted one."""
    counts = [
        one.count for one in available if one.kind == wanted.kind and wanted.type in ("", one.type)
    ]
    return sum(counts) >= wanted.count


def wanted_gres(site: SiteConfig) -> list[Gres]:
    """Return all that a task of a site asks for, whether by `gres` or by other flags of sbatch."""
    found = gres_of(site.gres) + gres_of(str(site.sbatch.get("gres", "")))
    for flag in _GPU_FLAGS:
        value = str(site.sbatch.get(flag, ""))
        if value:
            found += gres_of(f"gpu:{value}")
    return found


def gpus_of(site: SiteConfig) -> int:
    """Return how many GPUs a task of a site asks for."""
    return sum(one.count for one in wanted_gres(site) if one.kind == "gpu")


def allocation_notes(site: SiteConfig) -> list[str]:
    """Return what does not fit together in what a site asks for a task."""
    workers, gpus = site.workers_per_task, gpus_of(site)
    notes = []
    if site.candidates_per_task < workers:
        notes.append(
            f"candidates_per_task = {site.candidates_per_task} leaves some of the "
            f"{workers} workers of a task without work: make it a multiple of {workers}"
        )
    elif site.candidates_per_task % workers:
        notes.append(
            f"candidates_per_task = {site.candidates_per_task} is no multiple of "
            f"workers_per_task = {workers}: some workers will wait for the others"
        )
    if site.executor == "slurm" and site.device == "cuda":
        notes += _gpu_notes(gpus, workers, exclusive="exclusive" in site.sbatch)
    if site.executor == "slurm" and site.threads * workers > site.cpus:
        notes.append(
            f"{workers} x threads = {site.threads} need more than cpus = {site.cpus}: "
            "the workers would share cores"
        )
    return notes


def _gpu_notes(gpus: int, workers: int, exclusive: bool) -> list[str]:
    if not gpus:
        if exclusive:
            return []
        return ['device = "cuda", and the site asks for no GPU: set gres, such as "gpu:1"']
    if gpus > workers:
        return [
            f"a task asks for {gpus} GPUs and has {workers} worker{'s' if workers > 1 else ''}: "
            f"{gpus - workers} would idle; set workers_per_task = {gpus}"
        ]
    if gpus < workers:
        return [f"a task has {workers} workers and asks for {gpus} GPUs: workers would share one"]
    return []
