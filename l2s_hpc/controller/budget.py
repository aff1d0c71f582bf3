"""What a search may use, and what it has used: pure functions of a run's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from l2s_hpc.config import BudgetConfig
from l2s_hpc.store.state import RunState


@dataclass(frozen=True)
class Budget:
    """The limits of a search, and what is needed to foresee the cost of its next generation.

    Attributes:
        limits: as the job file gives them.
        population: candidates of a generation.
        final: candidates that selection and report evaluate, see `finalists`.
        twins: those of them that are evaluated again, to measure the noise.
        items: items of each evaluation, by its name.
    """

    limits: BudgetConfig = field(default_factory=BudgetConfig)
    population: int = 0
    final: int = 0
    twins: int = 0
    items: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a search has used.

    Attributes:
        gpu_hours: of all attempts that left a receipt, failed ones too; one GPU each.
        candidates: different candidates that the search asked for, references not counted.
        unknown: attempts that left no receipt; their time is in no sum.
    """

    gpu_hours: float
    candidates: int
    unknown: int


def finalists(references: int, population: int) -> int:
    """Return how many candidates selection and report will evaluate, as far as one can foresee.

    How many are on the front nobody knows before: half a population is assumed.
    """
    return references + population // 2


def usage(state: RunState) -> Usage:
    """Return what a run has used until now."""
    ended = [
        attempt
        for tries in state.attempts.values()
        for attempt in tries
        if attempt.outcome == "failed" and not attempt.seconds and attempt.kind != "not begun"
    ]
    return Usage(state.gpu_seconds / 3600, len(state.genomes), len(ended))


def spent(state: RunState, budget: Budget, now: float) -> str:
    """Return why no other generation fits into the budget; empty if one does.

    Foreseen are: for the next generation and for what comes after the search, the mean seconds of a
    candidate of the search, in proportion to its items; for the deadline, that the next generation
    lasts as long as they usually do.
    """
    limits = budget.limits
    if limits.max_candidates is not None:
        known = len(state.genomes)
        if known + budget.population > limits.max_candidates:
            return f"{known} candidates, budget.max_candidates = {limits.max_candidates}"
    if limits.max_gpu_hours is not None:
        foreseen = (state.gpu_seconds + _foreseen(state, budget)) / 3600
        if foreseen > limits.max_gpu_hours:
            return (
                f"{state.gpu_seconds / 3600:.2f} GPU-hours, and {foreseen:.2f} with another "
                "generation and what comes after the search; "
                f"budget.max_gpu_hours = {limits.max_gpu_hours:g}"
            )
    if limits.deadline is not None and now + _usual_generation(state) > limits.deadline.timestamp():
        return f"another generation would end after budget.deadline = {limits.deadline}"
    return ""


def _foreseen(state: RunState, budget: Budget) -> float:
    """Return the seconds that another generation, selection, noise and report may need."""
    items = dict(budget.items)
    searched = [tries for (name, _), tries in state.attempts.items() if name == "search"]
    if not searched:
        return 0.0
    a_candidate = sum(a.seconds for tries in searched for a in tries) / len(searched)
    later = budget.final * (items.get("selection", 0) + items.get("report", 0))
    later += budget.twins * items.get("noise", 0)
    shares = later / max(items.get("search", 1), 1)
    return a_candidate * (budget.population + shares)


def _usual_generation(state: RunState) -> float:
    """Return how many seconds a generation takes: the median, as a pause makes one of them long."""
    return median(g.seconds for g in state.generations) if state.generations else 0.0
