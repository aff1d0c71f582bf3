"""Objectives and constraints: parsed from the job file, computed from a candidate's measures.

Measures are a flat mapping such as `{"accuracy": .9, "tokens": 54.2, "accuracy.macro": .89,
"tokens.toy_easy": 8.1, "ntr": .1, …}`; a bare name pools over all items.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from l2s_hpc.config import SearchConfig
from l2s_hpc.errors import did_you_mean

Measures = Mapping[str, float | None]

_MAXIMISED = {"accuracy": True, "tokens": False, "ntr": False, "truncation": False}


@dataclass(frozen=True)
class Objective:
    """One objective; `minimised` turns a measure into a number that is better when smaller."""

    name: str
    worst: float

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def maximise(self) -> bool:
        return _MAXIMISED[self.kind]

    def minimised(self, measures: Measures) -> float:
        value = measures[self.name]
        value = self.worst if value is None or not math.isfinite(value) else value
        return -value if self.maximise else value


@dataclass(frozen=True)
class Constraint:
    """`measure >= bound` or `measure <= bound`; the bound may be a parent's measure plus a number."""

    measure: str
    at_least: bool
    parent: str | None
    bound: float

    def violation(self, measures: Measures, parents: Mapping[str, Measures]) -> float:
        """Return how far the constraint is missed; 0 or less is feasible."""
        value = measures[self.measure]
        bound = self.bound
        if self.parent is not None:
            reference = parents[self.parent][self.measure]
            bound += 0.0 if reference is None else reference
        if value is None or not math.isfinite(value):
            return 1.0
        return bound - value if self.at_least else value - bound


def objectives(config: SearchConfig) -> tuple[Objective, ...]:
    """Return the job's objectives, each with the finite worst value that penalises a failure."""
    worst = {"accuracy": 0.0, "tokens": float(config.protocol.max_tokens), "ntr": 1.0}
    return tuple(
        Objective(name, worst.get(name.partition(".")[0], 1.0)) for name in config.objectives
    )


def constraints(config: SearchConfig) -> tuple[Constraint, ...]:
    """Return the job's constraints."""
    return tuple(_parse(text, config) for text in config.constraints)


def objective_faults(config: SearchConfig) -> list[str]:
    """Return a line for each objective or constraint that cannot be understood."""
    faults = [f"objectives: {fault}" for name in config.objectives for fault in _measure_faults(name, config)]
    if len(set(config.objectives)) != len(config.objectives):
        faults.append("objectives: one is named twice")
    if config.search.algorithm == "ga" and len(config.objectives) != 1:
        faults.append(f"search.algorithm: ga has one objective, not {len(config.objectives)}")
    if config.search.algorithm == "nsga2" and len(config.objectives) == 1:
        faults.append("search.algorithm: nsga2 needs two objectives or more; use ga for one")
    for text in config.constraints:
        try:
            constraint = _parse(text, config)
        except ValueError as error:
            faults.append(f"constraints: {error}")
            continue
        faults += [f"constraints: {fault}" for fault in _measure_faults(constraint.measure, config)]
        if constraint.parent is not None and constraint.parent not in config.parents:
            faults.append(
                f"constraints: '{text}': no parent '{constraint.parent}': "
                + did_you_mean(constraint.parent, config.parents)
            )
    return faults


def minimised(found: Sequence[Objective], measures: Measures | None) -> list[float]:
    """Return the vector that the algorithm minimises; `None` (failed) gives the finite worst."""
    if measures is None:
        return [-o.worst if o.maximise else o.worst for o in found]
    return [objective.minimised(measures) for objective in found]


def violations(
    found: Sequence[Constraint], measures: Measures | None, parents: Mapping[str, Measures]
) -> list[float]:
    """Return each constraint's violation; a failed candidate violates all by 1."""
    if measures is None:
        return [1.0 for _ in found]
    return [constraint.violation(measures, parents) for constraint in found]


def _parse(text: str, config: SearchConfig) -> Constraint:
    match = re.fullmatch(
        r"\s*([\w.]+)\s*(>=|<=)\s*(?:parent\.(\w+)\s*(?:([+-])\s*([\d.]+))?|(-?[\d.]+))\s*", text
    )
    if match is None:
        raise ValueError(
            f"'{text}' is not understood: write 'accuracy >= parent.slow - 0.02' or 'ntr <= 0.1'"
        )
    measure, sign, parent, plus, offset, number = match.groups()
    if parent is not None:
        bound = float(f"{plus}{offset}") if offset else 0.0
    else:
        bound = float(number)
    return Constraint(measure, sign == ">=", parent, bound)


def _measure_faults(name: str, config: SearchConfig) -> list[str]:
    kind, _, part = name.partition(".")
    if kind not in _MAXIMISED:
        return [f"unknown measure '{name}': {did_you_mean(kind, _MAXIMISED)}"]
    if part and part != "macro" and part not in config.benchmarks:
        return [f"unknown part '{part}' of '{name}': {did_you_mean(part, ['macro', *config.benchmarks])}"]
    return []
