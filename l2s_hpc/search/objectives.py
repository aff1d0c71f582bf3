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
    """`measure >= bound` or `measure <= bound`; the bound may be relative to a parent's measure."""

    measure: str
    at_least: bool
    parent: str | None
    bound: float
    largest: float = 1.0

    def violation(self, measures: Measures | None, parents: Mapping[str, Measures]) -> float:
        """Return how far the constraint is missed; 0 or less is feasible.

        `None` (failed), or a measure without a value, misses it by as much as any value can.
        """
        value = None if measures is None else measures[self.measure]
        bound = self.bound
        if self.parent is not None:
            reference = parents[self.parent][self.measure]
            bound += 0.0 if reference is None else reference
        if value is None or not math.isfinite(value):
            return max(1.0, bound if self.at_least else self.largest - bound)
        return bound - value if self.at_least else value - bound


def objectives(config: SearchConfig) -> tuple[Objective, ...]:
    """Return the job's objectives, each with the finite worst value that penalises a failure."""
    return tuple(
        Objective(name, 0.0 if _MAXIMISED[name.partition(".")[0]] else _largest(name, config))
        for name in config.objectives
    )


def constraints(config: SearchConfig) -> tuple[Constraint, ...]:
    """Return the job's constraints."""
    return tuple(_parse(text, config) for text in config.constraints)


def objective_faults(config: SearchConfig) -> list[str]:
    """Return a line for each objective or constraint that cannot be understood."""
    faults = [
        f"objectives: {fault}"
        for name in config.objectives
        for fault in _measure_faults(name, config)
    ]
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
    """Return each constraint's violation; a failed candidate (`None`) has the largest of all."""
    return [constraint.violation(measures, parents) for constraint in found]


def _parse(text: str, config: SearchConfig) -> Constraint:
    number = r"\d+(?:\.\d+)?|\.\d+"
    match = re.fullmatch(
        rf"\s*([\w.]+)\s*(>=|<=)\s*(?:parent\.(\w+)\s*(?:([+-])\s*({number}))?|(-?(?:{number})))\s*",
        text,
    )
    if match is None:
        raise ValueError(
            f"'{text}' is not understood: write 'accuracy >= parent.slow - 0.02' or 'ntr <= 0.1'"
        )
    measure, sign, parent, plus, offset, plain = match.groups()
    bound = plain or (f"{plus}{offset}" if offset else "0")
    return Constraint(measure, sign == ">=", parent, float(bound), _largest(measure, config))


def _largest(measure: str, config: SearchConfig) -> float:
    """Return the largest value that a measure can have."""
    return float(config.protocol.max_tokens) if measure.partition(".")[0] == "tokens" else 1.0


def _measure_faults(name: str, config: SearchConfig) -> list[str]:
    kind, _, part = name.partition(".")
    if kind not in _MAXIMISED:
        return [f"unknown measure '{name}': {did_you_mean(kind, _MAXIMISED)}"]
    if part and part != "macro" and part not in config.benchmarks:
        hint = did_you_mean(part, ["macro", *config.benchmarks])
        return [f"unknown part '{part}' of '{name}': {hint}"]
    return []
