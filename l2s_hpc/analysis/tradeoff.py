"""The trade-off between objectives: which candidates are feasible, the front, the hypervolume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from l2s_hpc.measures.tradeoff import hypervolume, non_dominated
from l2s_hpc.store.state import RunState

REFERENCE_ACCURACY = 0.0
REFERENCE_TOKENS = 1.25
"""The reference point: no answer right, and 1.25 times the first parent's mean tokens."""


@dataclass(frozen=True)
class Hypervolume:
    """The trade-off that a run has reached, in one evaluation; 0 is nothing, 1 is ideal.

    Attributes:
        evaluation: where accuracy and tokens were measured.
        generations: what the feasible candidates of all generations up to each one reach.
        sweep: what the one-parameter sweep reaches; None if none of it has a table there.
        average: what the plain average and the parents reach together.
        slow_tokens: the first parent's mean tokens there, which set the reference point.
    """

    evaluation: str
    generations: tuple[float, ...]
    sweep: float | None
    average: float | None
    slow_tokens: float


def hypervolume_of(points: Iterable[tuple[float, float]], slow_tokens: float) -> float:
    """Return the hypervolume of points, as a share of the reference area.

    Accuracy is maximised and tokens are minimised. The reference point is accuracy 0 at 1.25 times
    the first parent's mean tokens, and the area between it and the ideal (all right at no tokens)
    is 1. A point that spends more than the reference adds nothing; no points give 0.

    Args:
        points: pairs (accuracy in [0, 1], mean tokens).
        slow_tokens: the first parent's mean tokens in the same evaluation, above 0.
    """
    minimised = [(-accuracy, tokens) for accuracy, tokens in points]
    if not minimised:
        return 0.0
    reference = (-REFERENCE_ACCURACY, REFERENCE_TOKENS * slow_tokens)
    return hypervolume(minimised, reference) / ((1.0 - REFERENCE_ACCURACY) * reference[1])


def feasible(state: RunState) -> dict[str, bool]:
    """Return which candidates meet the constraints, as far as generations are told."""
    return {
        candidate: all(value <= 0 for value in row) and ("search", candidate) not in state.penalised
        for generation in state.generations
        if generation.violations is not None
        for candidate, row in zip(generation.candidates, generation.violations, strict=True)
    }


def feasible_by_generation(state: RunState) -> list[list[str]]:
    """Return the feasible candidates of all generations up to each told one."""
    meets = feasible(state)
    seen: list[str] = []
    found = []
    for generation in state.generations[: state.told]:
        seen = [*seen, *(c for c in generation.candidates if meets[c])]
        found.append(seen)
    return found


def search_front(state: RunState) -> list[str]:
    """Return the feasible candidates that no other dominates in the generations told so far."""
    meets = feasible(state)
    points = {
        candidate: row
        for generation in state.generations
        if generation.objectives is not None
        for candidate, row in zip(generation.candidates, generation.objectives, strict=True)
        if meets[candidate]
    }
    if not points:
        return []
    mask = non_dominated(list(points.values()))
    return [candidate for candidate, on_front in zip(points, mask, strict=True) if on_front]
