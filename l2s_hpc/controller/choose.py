"""The final front and the named picks, chosen on the selection split and then fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from l2s_hpc.measures.tradeoff import knee, non_dominated
from l2s_hpc.search.objectives import Constraint, Measures, Objective, minimised, violations

NEAR_SLOW = 0.02
"""`shortest_near_slow`: at most two points of accuracy below the first parent."""


@dataclass(frozen=True)
class Choice:
    """The final front and the picks by name."""

    front: tuple[str, ...]
    picks: dict[str, str]


def choose(
    candidates: Mapping[str, Measures],
    parents: Mapping[str, Measures],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
) -> Choice:
    """Choose among candidates by their measures on the selection split.

    The front holds the feasible, non-dominated ones. The picks, all from the front: `knee`,
    `most_accurate`, and `shortest_near_slow`, the shortest within two points of the first parent's
    accuracy, where there is one. No feasible candidate gives an empty choice.
    """
    feasible = {
        name: found
        for name, found in candidates.items()
        if all(v <= 0 for v in violations(constraints, found, parents))
    }
    if not feasible:
        return Choice((), {})
    points = {name: minimised(objectives, found) for name, found in feasible.items()}
    mask = non_dominated(list(points.values()))
    front = [name for name, on_front in zip(points, mask, strict=True) if on_front]
    picks = {
        "knee": front[knee([points[name] for name in front])],
        "most_accurate": max(front, key=lambda name: _number(feasible[name], "accuracy")),
    }
    slow = next(iter(parents.values()))
    near = [
        name
        for name in front
        if _number(feasible[name], "accuracy") >= _number(slow, "accuracy") - NEAR_SLOW
    ]
    if near:
        picks["shortest_near_slow"] = min(near, key=lambda n: _number(feasible[n], "tokens"))
    return Choice(tuple(front), picks)


def _number(found: Measures, name: str) -> float:
    value = found[name]
    return 0.0 if value is None else value
