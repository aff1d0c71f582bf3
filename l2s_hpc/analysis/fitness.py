"""Score tables -> measures: accuracy, tokens, truncation and transfer of each candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from l2s_hpc.analysis.frames import Frames, ScoreTensor
from l2s_hpc.measures.transfer import transfer

Measures = dict[str, float | None]
"""`n` answers, `n_gradable` of them to items whose gold a rule can judge; `accuracy`, that of the
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
        _mean_if_known("n_charged_tokens").alias("tokens"),
        _mean_if_known("truncated").alias("truncation"),
        _mean_if_known("n_charged_tokens", pl.col("correct")).alias("tokens_right"),
        pl.col("correct").filter(pl.col("gradable")).mean().alias("accuracy_gradable"),
        pl.col("undecided").mean(),
        pl.len().alias("n"),
        pl.col("gradable").sum().alias("n_gradable"),
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


def _mean_if_known(column: str, among: pl.Expr | None = None) -> pl.Expr:
    """Return the mean of a column (of some rows: `among`).

    Null where an import could not know all its values, or there are no such rows.
    """
    values = pl.col(column) if among is None else pl.col(column).filter(among)
    return pl.when(pl.col(column).null_count() == 0).then(values.mean())


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
    for name in RATES:
        parts = [value for key, value in values.items() if key.startswith(f"{name}.")]
        known = [part for part in parts if part is not None]
        found[f"{name}.macro"] = math.fsum(known) / len(parts) if len(known) == len(parts) else None
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
