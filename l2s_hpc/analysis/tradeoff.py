"""The trade-off between objectives: which candidates are feasible, the front, the hypervolume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from l2s_hpc.errors import UserError
from l2s_hpc.measures import tradeoff as measure
from l2s_hpc.measures.tradeoff import non_dominated
from l2s_hpc.store.state import RunState

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

REFERENCE_ACCURACY = 0.0
REFERENCE_TOKENS = 1.25
"""The reference point: no answer right, and 1.25 times the first parent's mean tokens."""


@dataclass(frozen=True)
class Hypervolume:
    """The trade-off that a run has reached, in one evaluation; 0 is nothing, 1 is ideal.

    Attributes:
        evaluation: where accuracy and tokens were measured.
        generations: what the feasible candidates of all generations up to each one reach.
        device_hours: what the search had spent by each of them; see `device_hours`.
        sweep: what the one-parameter sweep reaches; None if none of it has a table there.
        average: what the plain average and the parents reach together.
        slow_tokens: the first parent's mean tokens there, which set the reference point.
    """

    evaluation: str
    generations: tuple[float, ...]
    device_hours: tuple[float, ...]
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
    return measure.hypervolume(minimised, reference) / ((1.0 - REFERENCE_ACCURACY) * reference[1])


def hypervolume(run: Run, evaluation: str) -> Hypervolume:
    """Return the trade-off that each generation and the references reach; see `Run.hypervolume`."""
    measured = run.measures(evaluation)
    slow = next(iter(run.parents.values()), "")
    slow_tokens = float(measured.get(slow, {}).get("tokens") or 0.0)
    if not slow_tokens:
        message = f"no tokens of the first parent are known in evaluation '{evaluation}'"
        raise UserError(message, path=run.folder)

    def reached(candidates: Iterable[str]) -> float:
        points = [measured[c] for c in dict.fromkeys(candidates) if c in measured]
        pairs = [(float(p["accuracy"] or 0.0), float(p["tokens"] or 0.0)) for p in points]
        return hypervolume_of(pairs, slow_tokens)

    # After a search has grown, tables of an earlier choice stay; only the last one counts.
    chosen = run.state.stages.get(evaluation)
    generations = [
        [c for c in seen if chosen is None or c in chosen]
        for seen in feasible_by_generation(run.state)
    ]
    ids = run.info.reference_ids()
    sweep = [candidate for label, candidate in ids.items() if label.startswith("sweep.")]
    plain = [candidate for label, candidate in ids.items() if not label.startswith("sweep.")]
    return Hypervolume(
        evaluation=evaluation,
        generations=tuple(reached(seen) for seen in generations),
        device_hours=device_hours(run.state),
        sweep=reached(sweep) if any(c in measured for c in sweep) else None,
        average=reached(plain),
        slow_tokens=slow_tokens,
    )


def device_hours(state: RunState) -> tuple[float, ...]:
    """Return what the search had spent when each generation was told, in hours of a device.

    Attempts that failed count if they left a receipt; the references of the search count from the
    generation that they were evaluated with.
    """
    spent = [0.0] * state.told
    for attempt in (a for tries in state.attempts.values() for a in tries):
        if attempt.evaluation == "search" and attempt.generation < state.told:
            spent[attempt.generation] += attempt.seconds
    return tuple(seconds / 3600 for seconds in accumulate(spent))


def attainment(
    run: Run, evaluation: str | None = None, without: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return what the front needs to reach each reference, and reaches at its cost.

    A row is a reference that is not on the front itself: candidate, label, n, accuracy, tokens;
    front_tokens, the fewest of a front point that is at least as accurate, and front_accuracy, the
    best of one that spends no more (None where no point does); share_saved (of its tokens, negative
    where that point is longer) and accuracy_gained follow from them; optimistic as in `Run.front`.
    """
    split = evaluation or run.best_evaluation()
    front = run.front(split, without=without)
    measured = run.measures(split, without)
    known = [row for row in front if row["tokens"] is not None]
    on_front = {row["candidate"] for row in front}
    points = np.array([(-row["accuracy"], row["tokens"]) for row in known]).reshape(-1, 2)
    rows = []
    for candidate, label in run.labels.items():
        there = measured.get(candidate, {})
        accuracy, tokens = there.get("accuracy"), there.get("tokens")
        if accuracy is None or tokens is None or candidate in on_front:
            continue
        fewest = measure.needed(points, [-accuracy])[0]
        best = -measure.needed(points[:, ::-1], [tokens])[0]
        reached, affordable = bool(np.isfinite(fewest)), bool(np.isfinite(best))
        rows.append(
            {
                "candidate": candidate,
                "label": label,
                "n": there["n"],
                "accuracy": accuracy,
                "tokens": tokens,
                "front_tokens": float(fewest) if reached else None,
                "share_saved": float(1 - fewest / tokens) if reached and tokens else None,
                "front_accuracy": float(best) if affordable else None,
                "accuracy_gained": float(best - accuracy) if affordable else None,
                "optimistic": bool(front) and front[0]["optimistic"],
            }
        )
    return rows


def saving(row: Mapping[str, Any]) -> float | None:
    """Return the share of its tokens that a row of `attainment` saves; None if it saves nothing."""
    share: float | None = row["share_saved"]
    return share if share is not None and share >= 0 else None


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
