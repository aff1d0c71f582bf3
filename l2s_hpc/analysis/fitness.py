"""Score tables -> measures: accuracy, tokens, truncation and transfer of each candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.answers import Block, Gathering
from l2s_hpc.analysis.frames import Frames
from l2s_hpc.measures.transfer import shares

Measures = dict[str, float | None]
"""`n` items, `n_gradable` of them with a gold that a rule can judge; `accuracy`, that of the
gradable ones (`accuracy_gradable`), the share without a decision (`undecided`), `tokens`, those of
right answers (`tokens_right`), `truncation`, `ntr` and `ptr`, pooled over items; `.macro` is the
unweighted mean of the benchmarks, `.<benchmark>` one of them. None is a rate without
denominator."""

RATES = (
    "accuracy", "accuracy_gradable", "undecided", "tokens", "tokens_right", "truncation",
    "ntr", "ptr",
)  # fmt: skip
"""The measures that every table shows."""


def measures(
    frames: Frames, evaluation: str, candidates: Sequence[str], parents: Mapping[str, str]
) -> dict[str, Measures]:
    """Return the measures of candidates in an evaluation.

    Args:
        frames: the run's tables.
        evaluation: its name.
        candidates: candidate ids, all with a table there.
        parents: the parents' candidate ids by name, for transfer rates; without them every
            transfer rate is None.

    Raises:
        DamageError: a table is damaged, or a candidate lacks items of its parents.
    """
    ids = list(dict.fromkeys([*parents.values(), *candidates]))
    found: dict[str, Measures] = {candidate: {} for candidate in candidates}
    gathering = Gathering(evaluation, ids, frames.folder, every=True, verdicts=True)
    for block in frames.blocks(evaluation, ids):
        gathering.add(block)
        for candidate, means in zip(block.candidates, _means(block), strict=True):
            if candidate in found:
                found[candidate] |= means
    verdicts, row = gathering.verdicts(), {candidate: n for n, candidate in enumerate(ids)}
    benchmarks = np.array([benchmark for benchmark, _ in gathering.items], dtype=np.str_)
    merged = verdicts[:, [row[candidate] for candidate in candidates]]
    rates = _transfer_rates(verdicts[:, [row[p] for p in parents.values()]], merged, benchmarks)
    names = sorted(set(benchmarks.tolist()))
    for candidate, of_candidate in zip(candidates, rates, strict=True):
        found[candidate] |= of_candidate
        found[candidate] |= _macro(found[candidate], names)
    return found


def _means(block: Block) -> Iterator[Measures]:
    """Yield the means of each candidate, pooled and by benchmark.

    None where an import could not know all values, or there are none. Sums of whole numbers are
    exact, so that it does not matter in which order they are added.
    """
    layout, correct, tokens = block.layout, block.correct, block.tokens
    unknown, uncut = np.isnan(tokens), np.isnan(block.truncated)
    known = np.where(unknown, 0.0, tokens) if unknown.any() else tokens
    cut = np.where(uncut, 0.0, block.truncated) if uncut.any() else block.truncated
    answers = {
        "answers": np.ones((1, correct.shape[1])),
        "gradable": block.gradable,
        "right": correct,
        "right_gradable": correct & block.gradable,
        "undecided": block.undecided,
        "tokens": known,
        "tokens_right": np.where(correct, known, 0.0),
        "cut": cut,
        "unknown": unknown,
        "uncut": uncut,
    }
    sums = {name: layout.sums(values) for name, values in answers.items()}
    sums["n"] = layout.counts[None]
    for name in ("answers", "n"):
        sums[name] = np.repeat(sums[name], len(correct), axis=0)
    columns = {"": _rates({name: part.sum(axis=1) for name, part in sums.items()})}
    for place, name in enumerate(layout.benchmarks):
        columns[f".{name}"] = _rates({key: part[:, place] for key, part in sums.items()})
    for row in range(len(correct)):
        yield {
            f"{name}{suffix}": values[row]
            for suffix, rates in columns.items()
            for name, values in rates.items()
        }


def _rates(sums: Mapping[str, NDArray[np.float64]]) -> dict[str, list[float | None]]:
    n = sums["answers"]
    told = np.where(sums["unknown"] > 0, 0, 1)
    return {
        "accuracy": _ratio(sums["right"], n),
        "tokens": _ratio(sums["tokens"], n * told),
        "truncation": _ratio(sums["cut"], np.where(sums["uncut"] > 0, 0, n)),
        "tokens_right": _ratio(sums["tokens_right"], sums["right"] * told),
        "accuracy_gradable": _ratio(sums["right_gradable"], sums["gradable"]),
        "undecided": _ratio(sums["undecided"], n),
        "n": [int(count) for count in sums["n"]],
        # All items have as many answers.
        "n_gradable": [int(count) for count in sums["gradable"] * sums["n"] // n],
    }


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> list[float | None]:
    nothing = np.full(len(above), np.nan)
    found = np.divide(above, below, out=nothing, where=below > 0)
    return [_number(value) for value in found.tolist()]


def _transfer_rates(
    parents: NDArray[np.uint8], merged: NDArray[np.uint8], benchmarks: NDArray[np.str_]
) -> list[Measures]:
    """Return NTR and PTR of each merge, pooled and by benchmark; None where there is no parent.

    Args:
        parents: shape `[samples, parents, items]`.
        merged: shape `[samples, candidates, items]`.
        benchmarks: of each item, sorted.
    """
    names = sorted(set(benchmarks.tolist()))
    suffixes = ["", *(f".{name}" for name in names)]
    candidates = merged.shape[1]
    if not parents.shape[1]:
        nothing = {f"{rate}{suffix}": None for rate in ("ntr", "ptr") for suffix in suffixes}
        return [dict(nothing) for _ in range(candidates)]
    between, starts = shares(parents, merged), np.searchsorted(benchmarks, names)
    found: list[Measures] = [{} for _ in range(candidates)]
    for rate, sides in between.rates.items():
        hits, bases = (np.add.reduceat(side, starts, axis=-1) for side in sides)
        totals = np.array([bases.sum(), *bases])
        counts = np.column_stack([hits.sum(axis=1), hits])
        rates = np.full(counts.shape, np.nan)
        np.divide(counts, totals, out=rates, where=totals > 0)
        for measured, row in zip(found, rates.tolist(), strict=True):
            measured |= {f"{rate}{s}": _number(v) for s, v in zip(suffixes, row, strict=True)}
    return found


def _macro(values: Measures, benchmarks: Sequence[str]) -> Measures:
    """Return the unweighted means over benchmarks; None if one of them is None."""
    found: Measures = {}
    for name in RATES:
        parts = [values[f"{name}.{benchmark}"] for benchmark in benchmarks]
        known = [part for part in parts if part is not None]
        found[f"{name}.macro"] = math.fsum(known) / len(parts) if len(known) == len(parts) else None
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
