"""How many candidates a task should evaluate: starts of an engine against waiting for a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.forecast import Speed, Stage, at_once, clock_seconds, longest_task, stage

LIMIT_SHARE = 2 / 3
"""What the longest task may take of its time limit: the rest is for nodes and answers that are
slower than those measured."""

NEAR = 1.05
"""Generations that take at most so many times as long as the shortest count as equally long."""


@dataclass(frozen=True)
class Packing:
    """What a number of candidates per task means for one generation.

    Attributes:
        size: candidates of a task.
        tasks: of the generation.
        clock: seconds until the generation is done, if tasks start as soon as the site's own
            limits let them.
        gpu: seconds of all GPUs together; starts: those of them that are starts of workers.
        longest: seconds of the longest task of the whole search.
        fits: whether that leaves the reserve of the time limit.
    """

    size: int
    tasks: int
    clock: float
    gpu: float
    starts: float
    longest: float
    fits: bool

    @property
    def start_share(self) -> float:
        """The share of the GPUs' time that is spent on starts."""
        return self.starts / self.gpu if self.gpu else 0.0

    def row(self, choice: str) -> dict[str, Any]:
        """Return a row for people and programs."""
        return {
            "choice": choice,
            "candidates_per_task": self.size,
            "tasks": self.tasks,
            "generation_minutes": round(self.clock / 60, 2),
            "start_share": round(self.start_share, 3),
            "gpu_hours": round(self.gpu / 3600, 3),
            "longest_task_minutes": round(self.longest / 60, 2),
            "fits_time_limit": self.fits,
        }


def packing(size: int, site: SiteConfig, speed: Speed, parts: Sequence[Stage]) -> Packing:
    """Return what so many candidates per task would mean.

    Args:
        size: the candidates of a task.
        site: the site; its own number does not matter.
        speed: what was measured.
        parts: the evaluations of the search; the first one is the generation that is looked at.
    """
    tried = site.model_copy(update={"candidates_per_task": size})
    staged = [stage(part.candidates, part.answers, tried) for part in parts]
    generation, longest = staged[0], longest_task(speed, staged, tried)
    return Packing(
        size=size,
        tasks=generation.tasks,
        clock=clock_seconds(generation, speed, tried),
        gpu=generation.seconds(speed),
        starts=generation.workers * speed.start,
        longest=longest,
        fits=longest <= LIMIT_SHARE * 60 * site.minutes,
    )


def propose(site: SiteConfig, speed: Speed, parts: Sequence[Stage]) -> Packing:
    """Return the number of candidates per task that a Slurm site should use, and what it means.

    With n candidates of a generation, k a task, w workers a task (so that k is a multiple of w),
    a tasks at once, s seconds of a worker's start and c of a candidate:

        F(k) = s + ceil(k / w) c                        a full task
        clock(k), see `clock_seconds`                   the generation
        gpu(k) = s (number of workers started) + n c    all its GPUs

    Of all k whose longest task, after the search too, takes at most two thirds of the time limit,
    those count whose clock(k) is within 5 % of the least; of them the one with the least gpu(k) is
    taken, and of equals the smallest, which loses the least with a task. Where no k leaves the
    reserve, the smallest is taken.

    Args:
        site: the site; its own number does not matter.
        speed: what was measured.
        parts: the evaluations of the search; the first one is the generation that counts.
    """
    step = site.workers_per_task
    largest = max(math.ceil(parts[0].candidates / step), 1)
    tried = [packing(step * n, site, speed, parts) for n in range(1, largest + 1)]
    allowed = [one for one in tried if one.fits] or tried[:1]
    shortest = min(one.clock for one in allowed)
    near = [one for one in allowed if one.clock <= NEAR * shortest]
    return min(near, key=lambda one: (one.gpu, one.size))


def advice(site: SiteConfig, speed: Speed | None, parts: Sequence[Stage]) -> dict[str, Any]:
    """Return the site's candidates per task and the proposal side by side, with a sentence.

    Args:
        site: the site.
        speed: what was measured; None where nobody has measured.
        parts: the evaluations of the search in their order, the last three after the search.
    """
    mine = site.candidates_per_task
    found: dict[str, Any] = {"site": mine, "proposed": None, "compared": []}
    if site.executor == "local":
        return found | {"meaning": f"{mine}; workers of this machine start once a generation"}
    if speed is None:
        how = "measure a candidate with `l2s plan --probe` or `l2s run --smoke`"
        return found | {"meaning": f"{mine}; what would be best is unknown: {how}"}
    # Later generations are many, the first is one.
    ordered = list(dict.fromkeys([parts[-4], *parts]))
    ours, best = packing(mine, site, speed, ordered), propose(site, speed, ordered)
    found |= {
        "proposed": best.size,
        "compared": [ours.row("site"), best.row("proposed")],
    }
    return found | {"meaning": _sentence(ours, best, site)}


def _sentence(ours: Packing, best: Packing, site: SiteConfig) -> str:
    said = f"{ours.size}; "
    said += f"{best.size} is proposed" if best.size != ours.size else "that is what is proposed"
    said += f", where {at_once(site)} tasks can run at once"
    if not best.fits:
        said += (
            f"; but even so a task would take {best.longest / 60:.0f} of site.minutes = "
            f"{site.minutes}, more than two thirds: raise site.minutes"
        )
    return said
