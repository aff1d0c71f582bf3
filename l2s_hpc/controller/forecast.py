"""What a search will cost: counts from the job, speed from receipts, and what a budget allows."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from l2s_hpc.cluster.local import visible_gpus
from l2s_hpc.config import SearchConfig, SiteConfig
from l2s_hpc.controller.budget import finalists
from l2s_hpc.controller.resolve import Resolved
from l2s_hpc.controller.smoke import smoke_runs
from l2s_hpc.errors import DamageError
from l2s_hpc.recipes.genes import Genome
from l2s_hpc.recipes.recipe import make_recipe
from l2s_hpc.records import Receipt, Recipe, cold
from l2s_hpc.search.evolve import Evolution
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import read_state
from l2s_hpc.store.tables import Tables

_OF_ANSWERS = ("generate", "grade", "write")
"""Phases that grow with the answers. The last two cost time of a device only where it waits."""


@dataclass(frozen=True)
class Counts:
    """How many candidates a search evaluates, at the most: what repeats costs nothing.

    Attributes:
        searched: of the first generation, by the algorithm.
        first: of the first generation, references included.
        later: of each later generation.
        generations: their number.
        final: on the selection and on the report split, see `finalists`.
        twins: evaluated on the selection items again, to measure the noise.
    """

    searched: int
    first: int
    later: int
    generations: int
    final: int
    twins: int = 0

    @property
    def search(self) -> int:
        """Candidates of the whole search."""
        return self.up_to(self.generations)

    def up_to(self, generations: int) -> int:
        """Return the candidates of so many generations."""
        return self.first + (generations - 1) * self.later if generations else 0


@dataclass(frozen=True)
class FirstGeneration:
    """The first generation, as the algorithm asks for it."""

    genomes: tuple[Genome, ...]
    recipes: tuple[Recipe, ...]
    counts: Counts


def first_generation(resolved: Resolved) -> FirstGeneration:
    """Ask the algorithm for its first generation, and count what follows from it."""
    config = resolved.config
    genomes = Evolution(config, resolved.space).ask([])
    recipes = tuple(make_recipe(config, resolved.space, g, resolved.identities) for g in genomes)
    searched = {recipe.candidate for recipe in recipes}
    references = {recipe.candidate for recipe in resolved.references.values()}
    population = config.search.population
    final = finalists(len(references), population)
    counts = Counts(
        searched=len(searched),
        first=len(searched | references),
        later=population,
        generations=config.search.generations,
        final=final,
        twins=min(config.noise.twins, final),
    )
    return FirstGeneration(genomes, recipes, counts)


@dataclass(frozen=True)
class Speed:
    """What work has taken, in seconds: medians over receipts of the same protocol.

    Attributes:
        start: of a worker, once: its engine, the parents, and the engine's own check.
        candidate: of a candidate, whatever it answers: merging and loading.
        answer: of one answer: all other seconds of a candidate in which the device was its own.
        receipts: how many say so.
        places: the run directories that they are from.
    """

    start: float
    candidate: float
    answer: float
    receipts: int
    places: tuple[str, ...]

    def candidate_seconds(self, answers: int) -> float:
        """Return the seconds of one candidate with so many answers, the start left out."""
        return self.candidate + answers * self.answer


def speed_from(folder: Path, protocol: str) -> Speed | None:
    """Read how fast a run's own candidates were, or else those of its smoke tests.

    Returns:
        None where nobody has measured this protocol.
    """
    for places in ([folder], smoke_runs(folder)):
        found = [(str(p), r) for p in places for r in _receipts(p) if r.protocol == protocol]
        if found:
            receipts = [receipt for _, receipt in found]
            return _speed(receipts, tuple(dict.fromkeys(place for place, _ in found)))
    return None


def _receipts(folder: Path) -> list[Receipt]:
    """Return the receipts of a run's accepted tables; one that cannot be read measures nothing."""
    paths = RunPaths(folder)
    if not paths.run_json.exists():
        return []
    state, _ = read_state(paths)
    tables, found = Tables(paths), []
    for accepted in state.accepted.values():
        with contextlib.suppress(DamageError):
            found.append(tables.receipt(accepted.where))
    return [receipt for receipt in found if receipt.rows and receipt.seconds]


def _speed(receipts: Sequence[Receipt], places: tuple[str, ...]) -> Speed:
    starts = [r.seconds.get("start", 0.0) for r in receipts]
    fixed = [
        sum(s for phase, s in r.seconds.items() if phase not in ("start", *_OF_ANSWERS))
        for r in receipts
    ]
    answers = [
        max(r.reserved - start - candidate, r.seconds.get("generate", 0.0)) / r.rows
        for r, start, candidate in zip(receipts, starts, fixed, strict=True)
    ]
    return Speed(
        start=median(cold(starts)),
        candidate=median(fixed),
        answer=median(answers),
        receipts=len(receipts),
        places=places,
    )


@dataclass(frozen=True)
class Stage:
    """One evaluation of some candidates, as tasks of a site."""

    candidates: int
    answers: int
    tasks: int
    workers: int

    def seconds(self, speed: Speed) -> float:
        """Return the seconds of all workers together, one GPU each."""
        return self.workers * speed.start + self.candidates * speed.candidate_seconds(self.answers)


def stage(candidates: int, answers: int, site: SiteConfig) -> Stage:
    """Return how an evaluation becomes tasks: of k candidates each, shared by the workers."""
    whole, rest = divmod(candidates, site.candidates_per_task)
    tasks = whole + bool(rest)
    if site.executor == "local":
        # Workers of this machine live for an evaluation, and take one task after another.
        return Stage(candidates, answers, tasks, min(at_once(site), tasks))
    workers = whole * min(site.workers_per_task, site.candidates_per_task)
    workers += min(site.workers_per_task, rest)
    return Stage(candidates, answers, tasks, workers)


def task_seconds(speed: Speed, candidates: int, answers: int, site: SiteConfig) -> float:
    """Return how long a task of so many candidates lasts; one of none takes no time."""
    turns = math.ceil(candidates / site.workers_per_task)
    return speed.start + turns * speed.candidate_seconds(answers) if turns else 0.0


def longest_task(speed: Speed, parts: Sequence[Stage], site: SiteConfig) -> float:
    """Return how long the longest task of some evaluations lasts."""
    size = site.candidates_per_task
    return max(task_seconds(speed, min(size, p.candidates), p.answers, site) for p in parts)


@dataclass(frozen=True)
class Forecast:
    """What a search will cost, in GPU-hours (hours of one worker where there is no GPU).

    Attributes:
        generations: the cost of each generation, in order.
        selection, noise, report: of what comes after the search.
        hours: of the clock, if every task starts as soon as the site's own limits let it.
        longest_task: the seconds of the longest task.
    """

    generations: tuple[float, ...]
    selection: float
    noise: float
    report: float
    hours: float
    longest_task: float

    @property
    def total(self) -> float:
        """All GPU-hours."""
        return sum(self.generations) + self.final

    @property
    def final(self) -> float:
        """GPU-hours after the search."""
        return self.selection + self.noise + self.report


def forecast(resolved: Resolved, counts: Counts, speed: Speed) -> Forecast:
    """Foresee what a search costs, by the speed that was measured."""
    site = resolved.site
    parts = stages(resolved, counts)
    seconds = [part.seconds(speed) / 3600 for part in parts]
    *generations, selection, noise, report = seconds
    return Forecast(
        generations=tuple(generations),
        selection=selection,
        noise=noise,
        report=report,
        hours=sum(clock_seconds(part, speed, site) for part in parts) / 3600,
        longest_task=longest_task(speed, parts, site),
    )


def stages(resolved: Resolved, counts: Counts) -> list[Stage]:
    """Return all evaluations of a search in their order: generations, selection, noise, report."""
    samples = resolved.config.protocol.samples
    answers = {name: len(e.items) * samples for name, e in resolved.evaluations.items()}
    sizes = [counts.first, *[counts.later] * (counts.generations - 1)]
    evaluations = [(n, answers["search"]) for n in sizes]
    final = {"selection": counts.final, "noise": counts.twins, "report": counts.final}
    evaluations += [(n, answers[name]) for name, n in final.items()]
    return [stage(n, each, resolved.site) for n, each in evaluations]


def clock_seconds(part: Stage, speed: Speed, site: SiteConfig) -> float:
    """Return how long an evaluation lasts, if tasks start as soon as the site's limits let them.

    Of n candidates, k a task, f = floor(n / k) tasks are full and last F seconds; what is left of
    the candidates, r = n - f k, goes into a task of R seconds, the last to start. With a tasks at
    once that is max(ceil(f / a) F, floor(f / a) F + R), the second term only where r > 0.
    """
    if not part.candidates:
        return 0.0
    if site.executor == "local":
        turns = math.ceil(part.candidates / max(part.workers, 1))
        return speed.start + turns * speed.candidate_seconds(part.answers)
    size, slots = site.candidates_per_task, at_once(site)
    whole, rest = divmod(part.candidates, size)
    full = task_seconds(speed, size, part.answers, site)
    last = task_seconds(speed, rest, part.answers, site)
    return max(math.ceil(whole / slots) * full, whole // slots * full + last if rest else 0.0)


def at_once(site: SiteConfig) -> int:
    """Return how many tasks of a run may run at the same time."""
    if site.executor == "local":
        if site.device == "cuda" and site.engine != "scripted":
            return site.parallel or len(visible_gpus()) or 1
        return site.parallel or os.cpu_count() or 1
    return min(site.throttle, site.max_jobs or site.throttle)


def within_budget(
    config: SearchConfig, counts: Counts, found: Forecast | None, now: datetime | None = None
) -> list[dict[str, Any]]:
    """Return a row for each limit of a job's budget: how many generations fit into it.

    Args:
        config: the job.
        counts: what it evaluates.
        found: what it costs; None where nobody has measured it.
        now: the time at which it starts.
    """
    limits = config.budget
    rows = []
    if limits.max_candidates is not None:
        searched = [counts.searched + n * counts.later for n in range(counts.generations)]
        fit = _fitting(searched, limits.max_candidates)
        rows.append(_row("max_candidates", limits.max_candidates, searched[-1], fit, counts))
    if limits.max_gpu_hours is not None:
        rows.append(_hours_row(limits.max_gpu_hours, counts, found))
    if limits.deadline is not None:
        rows.append(_deadline_row(limits.deadline, counts, found, now or datetime.now(UTC)))
    return rows


def _hours_row(limit: float, counts: Counts, found: Forecast | None) -> dict[str, Any]:
    if found is None:
        return _row("max_gpu_hours", limit, None, None, counts)
    # What comes after it is reserved: it comes at the end of however short a search.
    sums = accumulate(found.generations, initial=found.final)
    fit = _fitting(list(sums)[1:], limit)
    return _row("max_gpu_hours", limit, round(found.total, 3), fit, counts)


def _deadline_row(
    limit: datetime, counts: Counts, found: Forecast | None, now: datetime
) -> dict[str, Any]:
    if found is None:
        return _row("deadline", limit.isoformat(), None, None, counts)
    each = found.hours / counts.generations
    left = (limit - now).total_seconds() / 3600
    fit = _fitting([each * (n + 1) for n in range(counts.generations)], left)
    end = (now + timedelta(hours=found.hours)).isoformat(timespec="minutes")
    return _row("deadline", limit.isoformat(), end, fit, counts)


def _row(name: str, limit: Any, expected: Any, fit: int | None, counts: Counts) -> dict[str, Any]:
    return {
        "budget": name,
        "limit": limit,
        "expected": expected,
        "generations_that_fit": fit,
        "of": counts.generations,
    }


def _fitting(needs: Sequence[float], limit: float) -> int:
    """Return how many generations, one after another, stay within a limit."""
    return sum(need <= limit for need in needs)
