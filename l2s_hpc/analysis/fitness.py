"""Score tables -> measures: accuracy, tokens, truncation and transfer of each candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from l2s_hpc.analysis.frames import Frames, ScoreTensor
from l2s_hpc.measures.transfer import transfer

Measures = dict[str, float | None]
"""`accuracy`, `tokens`, `truncation`, `ntr` pooled over items; `.macro` is the unweighted mean of
the benchmarks, `.<benchmark>` one of them. None is a rate without denominator."""


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
    rows = frames.read(evaluation, ids)
    found = _means(rows, candidates)
    tensor = frames.arrange(rows, evaluation, ids)
    for candidate, rates in _transfer_rates(tensor, candidates, parents).items():
        found[candidate].update(rates)
    for values in found.values():
        values.update(_macro(values))
    return found


def _means(rows: pl.DataFrame, candidates: Sequence[str]) -> dict[str, Measures]:
    wanted = [
        pl.col("correct").mean().alias("accuracy"),
        pl.col("n_charged_tokens").mean().alias("tokens"),
        pl.col("truncated").mean().alias("truncation"),
        pl.len().alias("n"),
    ]
    rows = rows.filter(pl.col("candidate").is_in(candidates))
    pooled = rows.group_by("candidate").agg(wanted)
    parts = rows.group_by("candidate", "benchmark").agg(wanted)
    found: dict[str, Measures] = {candidate: {} for candidate in candidates}
    for row in pooled.iter_rows(named=True):
        found[row.pop("candidate")] |= row
    for row in parts.sort("candidate", "benchmark").iter_rows(named=True):
        candidate, benchmark = row.pop("candidate"), row.pop("benchmark")
        found[candidate] |= {f"{name}.{benchmark}": value for name, value in row.items()}
    return found


def _transfer_rates(
    tensor: ScoreTensor, candidates: Sequence[str], parents: Mapping[str, str]
) -> dict[str, Measures]:
    row_of = {candidate: row for row, candidate in enumerate(tensor.candidates)}
    of_parents = [row_of[parent] for parent in parents.values()]
    benchmarks = tensor.benchmarks
    columns = {"": np.ones(len(benchmarks), dtype=bool)}
    columns |= {f".{name}": benchmarks == name for name in sorted(set(benchmarks.tolist()))}
    found: dict[str, Measures] = {candidate: {} for candidate in candidates}
    for suffix, chosen in columns.items():
        values = tensor.values[:, chosen]
        rates = transfer(values[of_parents], values) if parents else None
        for candidate in candidates:
            row = row_of[candidate]
            found[candidate][f"ntr{suffix}"] = _number(rates.ntr[row]) if rates else None
            found[candidate][f"ptr{suffix}"] = _number(rates.ptr[row]) if rates else None
    return found


def _macro(values: Measures) -> Measures:
    """Return the unweighted means over benchmarks; None if one of them is None."""
    found: Measures = {}
    for name in ("accuracy", "tokens", "truncation", "ntr", "ptr"):
        parts = [value for key, value in values.items() if key.startswith(f"{name}.")]
        known = [part for part in parts if part is not None]
        found[f"{name}.macro"] = math.fsum(known) / len(parts) if len(known) == len(parts) else None
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
