"""Simultaneous intervals of the figures of a front, from what its candidates did on each item."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.verdicts import Verdicts
from l2s_hpc.measures.simultaneous import simultaneous
from l2s_hpc.measures.transfer import Shares

Floats = NDArray[np.float64]

_LENGTHS = ("tokens", "tokens_right")
_OF_ALL = ("accuracy", "tokens", "truncation", "undecided")
"""Means over all items, of which the mean over benchmarks is a mean with weights."""


def bands(
    verdicts: Verdicts, transfer: Shares | None, candidates: Sequence[str], measures: Sequence[str]
) -> list[dict[str, float | None]]:
    """Return `<measure>_low` and `<measure>_high` of each candidate.

    All true values of all candidates and measures lie in their intervals in 95 of 100 draws of the
    items. None is an interval of a measure that is not known (tokens of some imports, transfer
    without parents) or that is no ratio of sums (the mean over benchmarks of a ratio).

    Args:
        verdicts: what the candidates did.
        transfer: their transfer, rows as in `candidates`; None if a parent is missing.
        candidates: candidate ids.
        measures: names such as `accuracy`, `tokens.gsm8k`, `accuracy.macro`, `ntr`.
    """
    rows = [verdicts.row(candidate) for candidate in candidates]
    above: list[Floats] = []
    below: list[Floats] = []
    rates: list[bool] = []
    places: dict[tuple[int, str], int] = {}
    for name in measures:
        kind = name.partition(".")[0]
        figure = _figure(verdicts, transfer, rows, name)
        if figure is None:
            continue
        for index, (numerator, denominator) in enumerate(zip(*figure, strict=True)):
            if np.isfinite(numerator).all() and denominator.any():
                places[index, name] = len(rates)
                above.append(numerator)
                below.append(denominator)
                rates.append(kind not in _LENGTHS)
    found: list[dict[str, float | None]] = [
        {f"{name}_{end}": None for name in measures for end in ("low", "high")} for _ in rows
    ]
    if not places:
        return found
    strata = verdicts.benchmarks
    ends = simultaneous(np.stack(above), np.stack(below), strata, np.array(rates))
    for (index, name), place in places.items():
        for end, value in (("low", ends.low[place]), ("high", ends.high[place])):
            found[index][f"{name}_{end}"] = None if math.isnan(value) else float(value)
    return found


def _figure(
    verdicts: Verdicts, transfer: Shares | None, rows: Sequence[int], name: str
) -> tuple[Floats, Floats] | None:
    """Return numerator and denominator of a measure, `[candidate, item]`."""
    kind, _, part = name.partition(".")
    right = verdicts.right[rows]
    ones = np.ones_like(right)
    gradable = verdicts.gradable[rows].astype(np.float64)
    known: dict[str, tuple[Floats, Floats]] = {
        "accuracy": (right, ones),
        "accuracy_gradable": (right * gradable, gradable),
        "tokens": (verdicts.tokens[rows], ones),
        "tokens_right": (verdicts.tokens_of_right[rows], right),
        "truncation": (verdicts.truncated[rows], ones),
        "undecided": (verdicts.undecided[rows], ones),
    }
    if transfer is not None:
        known |= {rate: (hit, ones * base) for rate, (hit, base) in transfer.rates.items()}
    if kind not in known or (part == "macro" and kind not in _OF_ALL):
        return None
    numerator, denominator = known[kind]
    weight = _weights(verdicts.benchmarks, part)
    return numerator * weight, denominator * weight


def _weights(benchmarks: NDArray[np.str_], part: str) -> Floats:
    """Return the weight of each item in the whole (""), in one benchmark, or in `macro`."""
    if part == "":
        return np.ones(benchmarks.size)
    if part != "macro":
        return np.asarray(benchmarks == part, dtype=np.float64)
    _, place, counts = np.unique(benchmarks, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[place.reshape(-1)], dtype=np.float64)
